"""Places in a spec, and what is wrong there. Torch-free."""

from pydantic import ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError

from mpo.errors import InvalidSpec

Place = tuple[str | int, ...]


def spec_error(message: str, place: Place) -> InvalidSpec:
    """What is wrong at a place of the spec."""
    return InvalidSpec(message, field=".".join(str(part) for part in place), loc=place)


def refused_field(message: str, *place: str | int) -> ValidationError:
    """What a validator raises of a field below what it looks at, so that the error names that field."""
    error = PydanticCustomError("value_error", "{error}", {"error": message})
    return ValidationError.from_exception_data(
        "spec", [InitErrorDetails(type=error, loc=place, input=None)], hide_input=True
    )
