"""Job specs from a file or stdin, and what `--set` changes in them."""

import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import yaml
from pydantic import JsonValue, TypeAdapter, ValidationError

from mpo_client.cli.error_lines import Misuse

Spec = dict[str, JsonValue]
_SPEC = TypeAdapter(Spec)


def read_spec(file: str) -> Spec:
    """YAML, of which JSON is a part; `-` is stdin. Raises Misuse."""
    try:
        text = sys.stdin.read() if file == "-" else Path(file).read_text()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no text"
        raise Misuse(f"cannot read the spec {file}: {why}") from error
    name = "stdin" if file == "-" else file
    try:
        return _SPEC.validate_python(_parsed(text), strict=True)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" in line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise Misuse(f"{name} is neither YAML nor JSON{where}: {getattr(error, 'problem', error)}") from error
    except ValidationError as error:
        raise Misuse(f"{name} should hold a job spec: names with values, such as `method: …`") from error


def _parsed(text: str) -> object:
    return yaml.load(text, _Loader)  # noqa: S506 - a safe loader


class _Loader(yaml.SafeLoader):
    """Takes 1e-4 for a number, as JSON does: a learning rate is written so."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def change(spec: Spec, changes: Iterable[str]) -> Spec:
    """The spec with each `path.to.field=value` in it; a value is JSON, or else a text. Raises Misuse."""
    changed: Spec = json.loads(json.dumps(spec))
    for text in changes:
        path, separator, value = text.partition("=")
        names = path.split(".")
        if not separator or not all(names):
            raise Misuse(f"--set {text}: should be path.to.field=value, such as method.split.threshold=1.0")
        _set(changed, names, _value(value), text)
    return changed


def _set(spec: Spec, names: list[str], value: JsonValue, text: str) -> None:
    place: JsonValue = spec
    for name in names[:-1]:
        inner = _inner(place, name, text)
        if inner is None and isinstance(place, dict):
            inner = place[name] = {}
        place = inner
    last = names[-1]
    if isinstance(place, dict):
        place[last] = value
    elif isinstance(place, list):
        place[_index(place, last, text)] = value
    else:
        raise Misuse(f"--set {text}: {'.'.join(names[:-1])} holds no fields in the spec")


def _inner(place: JsonValue, name: str, text: str) -> JsonValue:
    if isinstance(place, dict):
        return place.get(name)
    if isinstance(place, list):
        return place[_index(place, name, text)]
    raise Misuse(f"--set {text}: what stands before {name} holds no fields in the spec")


def _index(place: list[JsonValue], name: str, text: str) -> int:
    """A member of a list by its number, or (stages) by its name."""
    for number, member in enumerate(place):
        if isinstance(member, dict) and member.get("name") == name:
            return number
    if not name.isdecimal() or int(name) >= len(place):
        raise Misuse(f"--set {text}: the list has no member {name}; it has {len(place)}, from 0")
    return int(name)


def _value(text: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except ValueError:
        return text
    return value
