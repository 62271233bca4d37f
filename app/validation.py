"""What pydantic refuses -> field and what would be accepted there, never the input itself."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, get_args

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError

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
    return [FieldError(loc=list(e["loc"]), message=_message(e, model)) for e in error.errors()]


def _message(error: Mapping[str, Any], model: object) -> str:
    context = error.get("ctx") or {}
    match error["type"]:
        case "extra_forbidden":
            known = accepted_fields(model, error["loc"][1:-1])
            return f"Unknown field; accepted are {', '.join(known)}" if known else "Unknown field"
        case "union_tag_invalid":
            return f"{context['discriminator']} should be one of {context['expected_tags']}"
        case "json_invalid":
            return f"The body is not valid JSON: {context.get('error', 'syntax error')}"
        case "value_error" | "assertion_error":
            return str(context.get("error") or error["msg"])
        case "missing":
            return "This field is required"
    return str(error["msg"])


def accepted_fields(model: object, loc: Sequence[str | int]) -> list[str]:
    """Names of the fields that the model at `loc` takes; empty where that is not told by types."""
    models = list(_models(model))
    for part in loc:
        if isinstance(part, int) or any(_is_tag(m, part) for m in models):
            models = [m for m in models if isinstance(part, int) or _is_tag(m, part)]
            continue
        fields = [m.model_fields[part].annotation for m in models if part in m.model_fields]
        models = [inner for annotation in fields for inner in _models(annotation)]
    return sorted({name for m in models for name in m.model_fields})


def _models(annotation: object) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]


def _is_tag(model: type[BaseModel], word: str | int) -> bool:
    """Whether a discriminated union's loc names this member by its `type` or `kind`."""
    if word == model.__name__:
        return True
    tags = (model.model_fields.get(name) for name in ("type", "kind"))
    return any(tag is not None and word in get_args(tag.annotation) for tag in tags)
