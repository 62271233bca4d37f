"""Where a refused field stands in what somebody wrote: pydantic's path without its own words. Torch-free.

Inside a union pydantic puts the member's tag (`type`, `kind`), or its type's name, into the path, though
nobody wrote it: `method.dpo.dpo.beta` is the field `method.dpo.beta`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str | int, ...]


def written_path(annotation: object, path: Sequence[str | int]) -> Path:
    """The path as it was written. annotation: the type of the whole; path: pydantic's, from there on."""
    return walk(annotation, path)[0]


def walk(annotation: object, path: Sequence[str | int]) -> tuple[Path, list[type[BaseModel]]]:
    """The path as it was written, and the models that stand at its end; none where types do not tell."""
    written: list[str | int] = []
    here = annotation
    for place, part in enumerate(path):
        member = _tagged(here, part) or _labelled(here, part)
        if member is not None:
            here = member
            continue
        written.append(part)
        here = _below(here, part)
        if here is None:
            return (*written, *path[place + 1 :]), []
    return tuple(written), list(_models(here))


def _tagged(annotation: object, part: str | int) -> type[BaseModel] | None:
    """The member of a union that a part of the path is the tag of."""
    name = _discriminator(annotation)
    if name is None:
        return None
    return next((m for m in _models(annotation) if part in get_args(m.model_fields[name].annotation)), None)


def _labelled(annotation: object, part: str | int) -> object:
    """The member of a union that no field tells apart, by what pydantic calls it; None for any other part."""
    members = [member for member in _flat(annotation) if member is not type(None)]
    if len(members) < 2 or not isinstance(part, str) or _discriminator(annotation) is not None:
        return None
    # What validates a member besides stands around its name: `function-after[check(), str]`.
    name = part.rpartition(", ")[2] if part.startswith("function-") else part
    return next((m for m in members if _label(m) == name.partition("[")[0].rstrip("]")), None)


def _label(member: object) -> str:
    return getattr(get_origin(member) or member, "__name__", "")


def _discriminator(annotation: object) -> str | None:
    """The field by which the members of a union are told apart."""
    for information in [annotation, *(get_args(annotation)[1:] if _is_annotated(annotation) else [])]:
        found = information.discriminator if isinstance(information, FieldInfo) else None
        if isinstance(found, str):
            return found
    inner = [_discriminator(argument) for argument in _alternatives(annotation)]
    return next((name for name in inner if name is not None), None)


def _below(annotation: object, part: str | int) -> object:
    """The type of a field or an item; None where it is not known."""
    for option in _flat(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            if isinstance(part, str) and part in option.model_fields:
                return option.model_fields[part]
        elif isinstance(part, int) and get_origin(option) in (list, tuple):
            return get_args(option)[0]
        elif isinstance(part, str) and get_origin(option) is dict:
            return get_args(option)[1]
    return None


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    for option in _flat(annotation):
        if isinstance(option, type) and issubclass(option, BaseModel):
            yield option


def _flat(annotation: object) -> Iterator[Any]:
    """The members of a union, however deep, without what annotates them."""
    inner = _alternatives(annotation)
    if not inner:
        yield annotation
    for argument in inner:
        yield from _flat(argument)


def _alternatives(annotation: object) -> Sequence[object]:
    if isinstance(annotation, FieldInfo):
        return [annotation.annotation]
    if _is_annotated(annotation):
        return get_args(annotation)[:1]
    is_union = get_origin(annotation) is Union or type(annotation).__name__ == "UnionType"
    return get_args(annotation) if is_union else []


def _is_annotated(annotation: object) -> bool:
    return get_origin(annotation) is Annotated
