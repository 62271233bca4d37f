"""Places in a spec, and what is wrong there. Torch-free."""

from mpo.errors import InvalidSpec

Place = tuple[str | int, ...]


def spec_error(message: str, place: Place) -> InvalidSpec:
    """What is wrong at a place of the spec."""
    return InvalidSpec(message, field=".".join(str(part) for part in place), loc=place)
