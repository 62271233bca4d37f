"""Which form of an answer a client wants: by `?format=`, else by its Accept header."""

from collections.abc import Mapping
from typing import Literal, get_args

Format = Literal["json", "png", "svg", "csv"]
MEDIA_TYPES: Mapping[Format, str] = {
    "json": "application/json",
    "png": "image/png",
    "svg": "image/svg+xml",
    "csv": "text/csv",
}


def accepted_format(accept: str | None) -> Format:
    """The named form of the highest quality, the first of equals; JSON where none is named."""
    best: tuple[float, Format] = (0.0, "json")
    for range_ in (accept or "").split(","):
        media_type, *parameters = (part.strip().lower() for part in range_.split(";"))
        quality = next((_quality(p) for p in parameters if p.startswith("q=")), 1.0)
        found = next((form for form in get_args(Format) if MEDIA_TYPES[form] == media_type), None)
        if found is None and media_type == "image/*":
            found = "png"
        if found is not None and quality > best[0]:
            best = (quality, found)
    return best[1]


def _quality(parameter: str) -> float:
    try:
        return float(parameter.removeprefix("q="))
    except ValueError:
        return 0.0
