"""Lengths in tokens of some rows of a dataset, as a model would read them, for estimates. Torch-free.

What a stage trains on is encoded by `mpo/tokenization.py`; here texts are only counted, by the tokenizer.json
of the model's folder. The two may differ by a token a text where transformers changes what that file says.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property, lru_cache
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers import Tokenizer

from mpo.errors import ChatTemplateRefused, NoChatTemplate, UnusableModel
from mpo.records import BATCH_ROWS, Content, batch_rows, load_content, shared_prefix

SAMPLED_ROWS = 512
"""Rows whose tokens are counted: their mean is off by some 3 % where lengths scatter by two thirds."""

WHOLLY_READ = 20_000
"""Rows of a dataset whose sample is taken from all of it; of a larger one, from some row groups."""

READ_GROUPS = 8
SAMPLED_BYTES = 2**24
"""Of a sample that would hold more, every second row is left out, as often as it takes: a server keeps it."""
MARK = "mark"
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
CONTENTS = ("prompt", "chosen", "rejected", "text")

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class SampledRows:
    """Evenly spaced rows of a canonical file. rows: those of the file; table: the sampled ones.

    distinct_prompts: share of the rows that were read whose prompt is no other's before it.
    """

    rows: int
    table: pa.Table
    distinct_prompts: float

    @property
    def complete(self) -> bool:
        """Whether the sample is the whole file."""
        return bool(self.table.num_rows == self.rows)

    @cached_property
    def contents(self) -> dict[str, list[Content]]:
        """Contents by column, of those that the file has."""
        names = [name for name in CONTENTS if name in self.table.schema.names]
        columns = {name: self.table.column(name).to_pylist() for name in names}
        if "text" in columns:
            return columns
        forms = self.table.column("form").to_pylist()
        return {
            name: [load_content(text, form) for text, form in zip(column, forms, strict=True)]
            for name, column in columns.items()
        }


def sample_rows(file: Path | IO[bytes], limit: int = SAMPLED_ROWS) -> SampledRows:
    """At most `limit` rows of a canonical file of pairs, prompts or texts, in order.

    Of more than `WHOLLY_READ` rows only the beginnings of some row groups are read, evenly spread too. In
    memory are the sample, `SAMPLED_BYTES` at most unless one row has more, and a batch.
    """
    with pq.ParquetFile(file) as parquet:
        names = [n for n in (*CONTENTS, "form") if n in parquet.schema_arrow.names]
        rows = read = int(parquet.metadata.num_rows)
        batches = parquet.iter_batches(batch_rows(parquet.metadata), columns=names)
        if rows > WHOLLY_READ:
            groups = _spread(parquet.num_row_groups, READ_GROUPS)
            read = sum(min(BATCH_ROWS, parquet.metadata.row_group(group).num_rows) for group in groups)
            batches = (next(parquet.iter_batches(BATCH_ROWS, [group], names)) for group in groups)
        sample, distinct = _taken(batches, parquet.schema_arrow, names, _spread(read, limit))
    return SampledRows(rows, sample, distinct / read if read else 1.0)


def _taken(
    batches: Iterable[pa.RecordBatch], schema: pa.Schema, names: Sequence[str], places: Sequence[int]
) -> tuple[pa.Table, int]:
    """The rows at these places among those that come, or every second of them, and how many prompts or texts
    differ among all that come."""
    taken = pa.schema([schema.field(name) for name in names]).empty_table()
    wanted, start = np.array(places, np.int64), 0
    seen: set[int] = set()
    for batch in batches:
        seen.update(map(hash, batch.column("text" if "text" in names else "prompt").to_pylist()))
        here = wanted[(wanted >= start) & (wanted < start + batch.num_rows)] - start
        taken = pa.concat_tables([taken, pa.Table.from_batches([batch.select(names).take(pa.array(here))])])
        start += batch.num_rows
        while taken.nbytes > SAMPLED_BYTES and taken.num_rows > 1:
            taken, wanted = taken.take(np.arange(0, taken.num_rows, 2)), wanted[::2]
    return taken, len(seen)


def _spread(count: int, limit: int) -> list[int]:
    """At most `limit` of the numbers 0 … count − 1, evenly spaced."""
    return [count * i // limit for i in range(limit)] if count > limit else list(range(count))


def count_tokens(sampled: SampledRows, folder: Path) -> dict[str, Integers]:
    """Tokens of each sampled row's contents by column, (n,), before anything is cut or a terminator is set.

    Prompts and texts with the tokenizer's special tokens, messages with the chat template's. folder: of the
    model. Raises UnusableModel, NoChatTemplate, ChatTemplateRefused.
    """
    file, contents = folder / "tokenizer.json", sampled.contents
    counter = _counter(folder, file.stat().st_mtime_ns if file.is_file() else 0)
    return {
        name: counter.opening(column)
        if name in {"prompt", "text"}
        else counter.responses(contents["prompt"], column)
        for name, column in contents.items()
    }


class TokenCounter:
    """Counts tokens as one model's tokenizer makes them."""

    def __init__(self, folder: Path) -> None:
        try:
            self._tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception as error:  # the library raises nothing narrower
            raise UnusableModel(f"The model's tokenizer.json cannot be read: {error}") from error
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._conversations = Conversations.of(folder)
        self._ending = len(self._tokenizer.encode("").ids) - len(_beginning(self._tokenizer))

    def opening(self, contents: Sequence[Content]) -> Integers:
        """Tokens of prompts, or of whole texts: (n,). Raises NoChatTemplate, ChatTemplateRefused."""
        lengths = np.zeros(len(contents), np.int64)
        texts = [i for i, content in enumerate(contents) if isinstance(content, str)]
        lengths[texts] = self._lengths([str(contents[i]) for i in texts], True) - self._ending
        chats = [i for i, content in enumerate(contents) if not isinstance(content, str)]
        lengths[chats] = self._lengths([self._conversations.opening(contents[i]) for i in chats], False)
        return lengths

    def responses(self, prompts: Sequence[Content], contents: Sequence[Content]) -> Integers:
        """Tokens of responses to these prompts, without a terminator: (n,)."""
        said = [
            content if isinstance(content, str) else self._conversations.response(prompt, content)
            for prompt, content in zip(prompts, contents, strict=True)
        ]
        return self._lengths(said, False)

    def _lengths(self, texts: Sequence[str], special: bool) -> Integers:
        found = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=special)
        return np.array([len(encoding.ids) for encoding in found], np.int64)


def _beginning(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer sets before a text."""
    mask: list[int] = tokenizer.encode("a").special_tokens_mask
    return mask[: mask.index(0)] if 0 in mask else []


@lru_cache(maxsize=4)
def _counter(folder: Path, _modified_ns: int) -> TokenCounter:
    # A large vocabulary takes half a second to load.
    return TokenCounter(folder)


class _Generation(Extension):
    """The tag that marks an assistant's words for training: its body is text like any other."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@dataclass(frozen=True)
class Conversations:
    """Writes messages as a model's chat template does. template: None where the model has none.

    tokens: the special tokens that templates name. broken: why the template cannot be read, if so.
    """

    template: Template | None
    tokens: Mapping[str, str]
    broken: str = ""

    @classmethod
    def of(cls, folder: Path) -> "Conversations":
        """The template of a model's folder."""
        settings = folder / "tokenizer_config.json"
        configured = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
        file = folder / "chat_template.jinja"
        source = file.read_text(encoding="utf-8") if file.is_file() else configured.get("chat_template")
        named = {name: configured[name] for name in SPECIAL_TOKENS if configured.get(name)}
        tokens = {name: str(t["content"] if isinstance(t, dict) else t) for name, t in named.items()}
        try:
            return cls(_environment().from_string(source) if isinstance(source, str) else None, tokens)
        except TemplateError as error:  # of no matter to texts that are no messages
            return cls(None, tokens, str(error))

    def opening(self, messages: Any) -> str:
        """A prompt up to where the assistant speaks; raises NoChatTemplate, ChatTemplateRefused."""
        return self._render(messages, messages[-1]["role"] != "assistant")

    def response(self, prompt: Any, response: Any) -> str:
        """What a response adds to its prompt, without what ends the turn; raises as `opening`."""
        opening, whole = self.opening(prompt), self._render([*prompt, *response], False)
        return whole[len(shared_prefix(opening, whole)) :].removesuffix(self._turn_end)

    @cached_property
    def _turn_end(self) -> str:
        asked, answered = {"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}
        return self._render([asked, answered], False).rpartition(MARK)[2]

    def _render(self, messages: Any, add_generation_prompt: bool) -> str:
        if self.broken:
            raise ChatTemplateRefused(f"The model's chat template cannot be read: {self.broken}")
        if self.template is None:
            raise NoChatTemplate
        try:
            return self.template.render(
                messages=messages, add_generation_prompt=add_generation_prompt, **self.tokens
            )
        except Exception as error:  # a template is a program: it may raise anything
            raise ChatTemplateRefused(f"The model's chat template refuses a conversation: {error}") from error


def _environment() -> ImmutableSandboxedEnvironment:
    """As transformers sets it up."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda format_: datetime.now(tz=UTC).strftime(format_)
    return environment


def _refuse(message: str) -> None:
    raise TemplateError(message)
