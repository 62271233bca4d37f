"""Preference pairs, prompts and texts, and the canonical Parquet files that hold them. Torch-free.

A file of pairs has the string columns id, prompt, chosen, rejected and form; where form is `messages`, the
three contents are JSON text of message lists, else they are the text itself. annotator, margin, weight and
source may be null. Later stages append columns (group, gap, ...) and never change these.
"""

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, AnyStr, Literal, TypedDict

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

BATCH_ROWS, BATCH_BYTES = 2048, 2**24
_quote = json.encoder.encode_basestring


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


Content = str | list[Message]
Form = Literal["text", "messages"]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """Two responses to one prompt, of which a person preferred `chosen`.

    group: number of the prompt group, from the hold-out on. gap: chosen reward minus rejected reward, from
    the split on. margin, weight: as uploaded; margin in reward units.
    """

    id: str
    prompt: Content
    chosen: Content
    rejected: Content
    annotator: str | None = None
    margin: float | None = None
    weight: float | None = None
    source: str | None = None
    group: int | None = None
    gap: float | None = None

    @property
    def form(self) -> Form:
        """How the prompt is written: as text, or as messages."""
        return "text" if isinstance(self.prompt, str) else "messages"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt alone."""

    id: str
    prompt: Content


@dataclass(frozen=True, slots=True)
class Text:
    """A text alone."""

    id: str
    text: str


PAIR_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("id", "prompt", "chosen", "rejected", "form", "annotator")]
    + [("margin", pa.float64()), ("weight", pa.float64()), ("source", pa.string())]
)
PROMPT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "prompt", "form")])
TEXT_SCHEMA = pa.schema([(name, pa.string()) for name in ("id", "text")])
GROUP_FIELD = pa.field("group", pa.int64())
GAP_FIELD = pa.field("gap", pa.float64())


def dump_content(content: Content) -> str:
    """The text of a content column: the string itself, or a message list as JSON."""
    if isinstance(content, str):
        return content
    # As json.dumps without ensure_ascii, which makes an encoder for each call.
    messages = (f'{{"role": {_quote(m["role"])}, "content": {_quote(m["content"])}}}' for m in content)
    return f"[{', '.join(messages)}]"


def load_content(text: str, form: str) -> Content:
    """The inverse of `dump_content`."""
    if form == "text":
        return text
    messages: list[Message] = json.loads(text)
    return messages


def shared_prefix(left: AnyStr, right: AnyStr) -> AnyStr:
    """The longest text that both begin with."""
    low, high = 0, min(len(left), len(right))
    while low < high:
        middle = (low + high + 1) // 2
        if left[low:middle] == right[low:middle]:
            low = middle
        else:
            high = middle - 1
    return left[:low]


@contextmanager
def parquet_writer(
    path: Path, schema: pa.Schema, compression: Literal["zstd", "lz4"] = "zstd"
) -> Iterator[pq.ParquetWriter]:
    """A writer of canonical files: each table or batch that is written becomes a row group. Texts take
    about half the time with lz4, and half as much disk again."""
    repetitive = [name for name in schema.names if name in {"form", "annotator", "source", "part", "why"}]
    options = {"compression": compression, "use_dictionary": repetitive}
    # Of `form` they tell without a look at the rows whether there are messages; those of texts would hold
    # whole texts in memory, two a row group.
    told = [name for name in schema.names if name == "form"]
    with pq.ParquetWriter(path, schema, write_statistics=told, **options) as writer:
        yield writer


def stream_batches(path: Path | IO[bytes], columns: Sequence[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a Parquet file in order, at most `BATCH_ROWS` at a time, whatever the file's size; fewer
    where rows are long."""
    with pq.ParquetFile(path) as file:
        yield from file.iter_batches(batch_size=batch_rows(file.metadata), columns=columns)


def batch_rows(metadata: pq.FileMetaData) -> int:
    """How many rows to read at a time: rows of the file's mean size come to `BATCH_BYTES` at most."""
    size: int = sum(metadata.row_group(group).total_byte_size for group in range(metadata.num_row_groups))
    return max(1, min(BATCH_ROWS, BATCH_BYTES * int(metadata.num_rows) // max(1, size)))


def without(table: pa.Table, names: Collection[str]) -> pa.Table:
    """The table without these columns, where it has them: what an earlier stage of the same kind appended."""
    return table.drop_columns([name for name in table.schema.names if name in names])


def count_rows(path: Path) -> int:
    """Rows of a Parquet file, from its footer."""
    return int(pq.read_metadata(path).num_rows)


def read_rows(path: Path, rows: Sequence[int]) -> pa.Table:
    """The rows of these numbers (from 0), in this order; reads only the row groups that hold one of them."""
    with pq.ParquetFile(path) as file:
        wanted = pa.array(rows, pa.int64())
        tables, numbers, start = [file.schema_arrow.empty_table()], [pa.array([], pa.int64())], 0
        for group in range(file.num_row_groups):
            stop = start + file.metadata.row_group(group).num_rows
            here = sorted({row for row in rows if start <= row < stop})
            if here:
                tables.append(file.read_row_group(group).take([row - start for row in here]))
                numbers.append(pa.array(here, pa.int64()))
            start = stop
        return pa.concat_tables(tables).take(pc.index_in(wanted, value_set=pa.concat_arrays(numbers)))


def pairs_of(table: pa.Table | pa.RecordBatch) -> list[PreferencePair]:
    """The pairs of a table with the canonical columns; group and gap where it has them."""
    columns = {name: table.column(name).to_pylist() for name in table.schema.names}
    absent: list[Any] = [None] * table.num_rows
    named = [columns.get(name, absent) for name in PreferencePair.__slots__]
    return [
        PreferencePair(
            id_, load_content(prompt, form), load_content(chosen, form), load_content(rejected, form), *rest
        )
        for form, id_, prompt, chosen, rejected, *rest in zip(columns["form"], *named, strict=True)
    ]


def stream_pairs(path: Path) -> Iterator[PreferencePair]:
    """The pairs of a canonical file in order, a batch in memory at a time."""
    for batch in stream_batches(path):
        yield from pairs_of(batch)


def read_pairs(path: Path) -> list[PreferencePair]:
    """All pairs of a canonical file, in order."""
    return list(stream_pairs(path))


def read_prompts(path: Path) -> list[Prompt]:
    """All prompts of a canonical file of prompts or of pairs, in order, repeated ones too."""
    return [
        Prompt(id_, load_content(prompt, form))
        for batch in stream_batches(path, ["id", "prompt", "form"])
        for id_, prompt, form in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]


def read_texts(path: Path) -> list[Text]:
    """All texts of a canonical file of texts, in order."""
    return [
        Text(id_, text)
        for batch in stream_batches(path, ["id", "text"])
        for id_, text in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]


def _pair_row(pair: PreferencePair) -> dict[str, object]:
    contents = {name: dump_content(getattr(pair, name)) for name in ("prompt", "chosen", "rejected")}
    return {name: getattr(pair, name) for name in PreferencePair.__slots__} | contents | {"form": pair.form}


def write_rows(path: Path, pairs: Iterable[PreferencePair]) -> int:
    """Writes pairs as a canonical file and returns their number. The columns group and gap are written where
    the first pair has them."""
    remaining = iter(pairs)
    head = list(islice(remaining, 1))
    schema = PAIR_SCHEMA
    for field in (GROUP_FIELD, GAP_FIELD):
        if head and getattr(head[0], field.name) is not None:
            schema = schema.append(field)
    remaining, written = chain(head, remaining), 0
    with parquet_writer(path, schema) as writer:
        while batch := [_pair_row(pair) for pair in islice(remaining, BATCH_ROWS)]:
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
            written += len(batch)
    return written
