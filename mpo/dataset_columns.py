"""The fast way through validation: whole columns of strings at once, where they are plainly good. Torch-free.

What it cannot vouch for it leaves alone, and the caller reads the rows one by one: both ways give the same
rows, and only the slow one words an error.
"""

import json
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pj

from mpo.dataset_blocks import CONTENT_COLUMNS, SCHEMAS, Block, content_keys
from mpo.dataset_rows import MAX_ID_CHARACTERS, DatasetKind
from mpo.dataset_transcripts import offsets_and_bytes, split_transcripts

OPTIONAL_STRINGS, OPTIONAL_NUMBERS = ("id", "annotator", "source"), ("margin", "weight")
OTHER_CONTENTS = ("preferred_output", "non_preferred_output")
MAX_COLUMNS = 64
"""A row with more is read by itself: in a block every row takes memory for every column."""
_FIRST_VISIBLE, _LAST_VISIBLE, _LAST_ASCII = 0x21, 0x7E, 0x7F


def parse_block(data: bytes, first_line: int, kind: DatasetKind) -> Block | None:
    """The rows of whole lines of JSON, numbered from first_line; None where that takes a closer look.

    Arrow's reader minds neither lines nor what follows a row. Here every line begins and ends with a brace
    and all columns are flat: no row can go over two lines, and two rows in one are found by counting.
    """
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n")
    rows = _count_braced_lines(data)
    fields = _fields_of(data[: data.find(b"\n") + 1] or data, kind) if rows else None
    if fields is None:
        return None
    # A column that is in no row costs about as much as one that is: those are looked for where one turns up.
    every = _any_fields(kind) | fields
    raw = _read(data, fields) or (_read(data, every) if len(every) > len(fields) else None)
    if raw is None or raw.num_rows != rows:
        return None
    return text_block(raw, np.arange(first_line, first_line + raw.num_rows), kind)


def _read(data: bytes, fields: Mapping[str, pa.DataType]) -> pa.Table | None:
    schema = pa.schema(list(fields.items()))
    try:
        return pj.read_json(
            pa.BufferReader(data),
            read_options=pj.ReadOptions(use_threads=False, block_size=len(data) + 1),
            parse_options=pj.ParseOptions(explicit_schema=schema, unexpected_field_behavior="error"),
        )
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return None


def _count_braced_lines(data: bytes) -> int:
    """How many lines there are where each begins and ends with a brace, else none."""
    characters = np.frombuffer(data, np.uint8)
    ends = np.flatnonzero(characters == ord("\n"))
    if not len(ends) or ends[-1] != len(data) - 1:
        ends = np.append(ends, len(data))
    starts = np.append(0, ends[:-1] + 1)
    braced = (ends > starts).all() and (characters[starts] == ord("{")) & (characters[ends - 1] == ord("}"))
    return len(ends) if np.all(braced) else 0


def _any_fields(kind: DatasetKind) -> dict[str, pa.DataType]:
    """The flat columns that any row of a kind may have."""
    fields = {name: pa.string() for name in (*CONTENT_COLUMNS[kind], "id")}
    if kind == "preference":
        fields |= {name: pa.string() for name in (*OPTIONAL_STRINGS, *OTHER_CONTENTS)}
        fields |= {name: pa.float64() for name in OPTIONAL_NUMBERS}
    return fields


def _fields_of(line: bytes, kind: DatasetKind) -> dict[str, pa.DataType] | None:
    """The columns of a row; None where they are not flat."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if len(row) > MAX_COLUMNS or not all(name.isprintable() for name in row):
        return None
    fields, usual = dict[str, pa.DataType](), _any_fields(kind)
    for name, value in row.items():
        if isinstance(value, bool):
            fields[name] = pa.bool_()
        elif isinstance(value, int | float):
            fields[name] = pa.int64() if name in OPTIONAL_STRINGS else pa.float64()
        elif isinstance(value, str):
            fields[name] = pa.string()
        elif value is not None:
            return None
        else:
            fields[name] = usual.get(name, pa.string())
    return fields


def text_block(raw: pa.Table, lines: np.ndarray, kind: DatasetKind) -> Block | None:
    """The block of a table whose contents are strings; None where a row might be refused or is written
    otherwise."""
    names, schema = CONTENT_COLUMNS[kind], SCHEMAS[kind]
    columns = {name: raw.column(name).combine_chunks() for name in raw.schema.names}
    if not all(_is_clean(column) for column in columns.values()):
        return None
    if any(name in columns and columns[name].null_count < len(lines) for name in OTHER_CONTENTS):
        return None
    if kind == "preference" and not _has_prompts(columns):
        columns |= split_transcripts(columns.get("chosen"), columns.get("rejected"))
    if not all(name in columns and _is_filled(columns[name]) for name in names):
        return None
    taken: dict[str, pa.Array] = {name: columns[name] for name in names}
    for name in schema.names:
        if name == "form":
            taken[name] = pa.repeat(pa.scalar("text", pa.string()), len(lines))
        elif name not in taken:
            column = columns.get(name)
            found = pa.nulls(len(lines), schema.field(name).type) if column is None else _option(name, column)
            if found is None:
                return None
            taken[name] = found
    table = pa.Table.from_arrays([taken[name] for name in schema.names], schema=schema)
    lengths = tuple(_lengths(taken[name]) for name in names)
    return Block(len(lines), table, np.arange(len(lines)), lines, lengths, content_keys(kind, table))


def _is_clean(column: pa.Array) -> bool:
    """Strings are UTF-8 without a NUL, numbers are finite."""
    if pa.types.is_floating(column.type):
        return bool(pc.all(pc.is_finite(column), min_count=0).as_py())
    if not pa.types.is_string(column.type):
        return True
    _, texts = offsets_and_bytes(column)
    try:
        # ASCII, which is cheaply told, is UTF-8.
        if texts.max(initial=0) > _LAST_ASCII:
            column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return bool(texts.min(initial=1) > 0)


def _has_prompts(columns: Mapping[str, pa.Array]) -> bool:
    return "prompt" in columns and columns["prompt"].null_count < len(columns["prompt"])


def _lengths(column: pa.Array) -> np.ndarray:
    """Characters of each text."""
    bounds, texts = offsets_and_bytes(column)
    if texts.max(initial=0) > _LAST_ASCII:
        return np.asarray(pc.utf8_length(column)).astype(np.int64)
    return np.diff(bounds).astype(np.int64)


def _is_filled(column: pa.Array) -> bool:
    """No text is null, empty or blank: each begins or ends with a visible character of ASCII, else Python is
    asked what blank means."""
    if not pa.types.is_string(column.type) or column.null_count:
        return False
    offsets, texts = offsets_and_bytes(column)
    starts, ends = offsets[:-1], offsets[1:]
    if (starts == ends).any():
        return False
    unsure = np.flatnonzero(~(_is_visible(texts[starts]) | _is_visible(texts[ends - 1])))
    return not any(text.isspace() for text in column.take(pa.array(unsure)).to_pylist())


def _is_visible(characters: np.ndarray) -> np.ndarray:
    return (characters >= _FIRST_VISIBLE) & (characters <= _LAST_VISIBLE)


def _option(name: str, column: pa.Array) -> pa.Array | None:
    """An optional column as it is stored; None where a value of it might be refused."""
    if name in OPTIONAL_NUMBERS:
        if not pa.types.is_floating(column.type):
            return None
        column = column.cast(pa.float64())
        # Adding zero makes one zero of both: JSON's integer -0 has no sign.
        column = pc.add(column, 0.0)
        if name == "weight" and pc.any(pc.less(column, 0.0)).as_py():
            return None
        return column
    if pa.types.is_int64(column.type):
        return column.cast(pa.string())
    if not pa.types.is_string(column.type):
        return None
    bounds = pc.min_max(pc.utf8_length(column)).as_py()
    if bounds["min"] is None:
        return column
    return column if bounds["min"] > 0 and bounds["max"] <= MAX_ID_CHARACTERS else None
