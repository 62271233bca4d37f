"""What pydantic refuses -> field and what would be accepted there, never the input itself."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

from mpo.field_paths import walk, written_path

WHERE = ("body", "query", "path", "header", "cookie")


class FieldError(BaseModel):
    """One field that was refused."""

    loc: list[str | int]
    message: str

    @property
    def param(self) -> str | None:
        """The field as OpenAI writes it: `messages[0].content`, without where it stood."""
        path = self.loc[1:] if self.loc and self.loc[0] in WHERE else self.loc
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
        return text.removeprefix(".") or None


class BodyRefused(RequestValidationError):
    """A body that a route has read by itself."""

    def __init__(self, errors: Sequence[Any], model: type[BaseModel]) -> None:
        super().__init__(errors)
        self.model = model


Parsed = TypeVar("Parsed", bound=BaseModel)


def parse_body(model: type[Parsed], body: bytes | Mapping[str, object]) -> Parsed:
    """The body of a route that chooses by media type how to read it; raises BodyRefused."""
    try:
        return model.model_validate_json(body) if isinstance(body, bytes) else model.model_validate(body)
    except ValidationError as error:
        errors = [{**e, "loc": ("body", *e["loc"])} for e in error.errors(include_input=False)]
        raise BodyRefused(errors, model) from error


def field_errors(error: RequestValidationError, route: object) -> list[FieldError]:
    """Each refused field. route: the matched one; its body's model tells which fields there are."""
    body = getattr(getattr(route, "body_field", None), "field_info", None)
    model = error.model if isinstance(error, BodyRefused) else getattr(body, "annotation", None)
    return [FieldError(loc=_written(e, model), message=_message(e, model)) for e in error.errors()]


def _written(error: Mapping[str, Any], model: object) -> list[str | int]:
    where, *path = error["loc"]
    return [where, *(written_path(model, path) if where == "body" else path)]


def _message(error: Mapping[str, Any], model: object) -> str:
    context = error.get("ctx") or {}
    match error["type"]:
        case "extra_forbidden":
            known = accepted_fields(model, error["loc"][1:-1])
            return f"Unknown field; accepted are {', '.join(known)}" if known else "Unknown field"
        case "union_tag_invalid":
            return f"{context['discriminator']} should be one of {context['expected_tags']}"
        case "union_tag_not_found":
            return f"{context['discriminator']} is required"
        case "json_invalid":
            return f"The body is not valid JSON: {context.get('error', 'syntax error')}"
        case "value_error" | "assertion_error":
            return str(context.get("error") or error["msg"])
        case "missing":
            return "This field is required"
    return str(error["msg"])


def accepted_fields(model: object, path: Sequence[str | int]) -> list[str]:
    """Names of the fields that the model at a path of pydantic's takes; empty where types do not tell."""
    return sorted({name for found in walk(model, path)[1] for name in found.model_fields})
