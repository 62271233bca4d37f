"""Which prompts of an evaluation occur in what its models were trained on. Torch-free.

Texts are compared by their words alone, in lower case, without marks and spaces; of messages only what users
and assistants say counts, as a system's turn may be the same in every row.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from mpo.records import Content, load_content, stream_batches

GRAM_WORDS = 13
"""Words in a row by which texts are taken to overlap: Brown et al. 2020 (arXiv 2005.14165), appendix C."""

FIRST = 10
"""Numbers of prompts that a report lists."""

PROMPT, TEXTS = "prompt", ("prompt", "chosen", "rejected", "text")
"""Columns of a canonical file: the one that may equal a prompt, and those that may overlap with one."""

_WORDS = re.compile(r"\w+")

Gram = tuple[str, ...]


@dataclass
class Overlap:
    """Prompts of the evaluation, by number from 0, that training data hold.

    equal: as a whole prompt. shared: some `GRAM_WORDS` words in a row, in a prompt or a response.
    """

    equal: set[int] = field(default_factory=set)
    shared: set[int] = field(default_factory=set)

    def __or__(self, other: "Overlap") -> "Overlap":
        """What either of two files holds."""
        return Overlap(self.equal | other.equal, self.shared | other.shared)

    def to_json(self) -> dict[str, object]:
        """Counts, and the first few prompts of each kind."""
        return {"equal": _counted(self.equal), "shared_13_grams": _counted(self.shared)}


class PromptIndex:
    """An evaluation's prompts as training texts are looked up in them. Memory: that of the prompts alone."""

    def __init__(self, prompts: Sequence[Content]) -> None:
        self._texts: dict[Gram, set[int]] = {}
        self._grams: dict[Gram, set[int]] = {}
        self.too_short: int = 0
        """Prompts of fewer words than `GRAM_WORDS`: they share none, whatever was trained on."""
        for number, prompt in enumerate(prompts):
            words = normalised(prompt)
            self._texts.setdefault(words, set()).add(number)
            self.too_short += len(words) < GRAM_WORDS
            for gram in grams(words):
                self._grams.setdefault(gram, set()).add(number)

    def overlap(self, path: Path, check: Callable[[], object]) -> Overlap:
        """What a canonical file of pairs, prompts or texts holds. check: called now and then, may raise."""
        found = Overlap()
        for name, content in _contents(path, check):
            words = normalised(content)
            if name == PROMPT and words:
                found.equal |= self._texts.get(words, set())
            for gram in grams(words) if self._grams else ():
                found.shared |= self._grams.get(gram, set())
        return found


def normalised(content: Content) -> Gram:
    """The words of a text, or of a conversation's turns but its system's, in lower case."""
    if not isinstance(content, str):
        content = " ".join(turn["content"] for turn in content if turn["role"] != "system")
    return tuple(_WORDS.findall(content.lower()))


def grams(words: Gram) -> Iterator[Gram]:
    """Every `GRAM_WORDS` words in a row."""
    return (words[start : start + GRAM_WORDS] for start in range(len(words) - GRAM_WORDS + 1))


def contamination_report(
    prompts: Sequence[Content],
    models: Sequence[tuple[str, Sequence[tuple[str, Path]] | None]],
    check: Callable[[], object],
) -> tuple[dict[str, object], dict[str, int]]:
    """By model, how many of the prompts occur in what it was trained on, and the first few of them; and again
    by name, of the models that have seen any, how many in one way or the other.

    models: each with the names and files of that, or None where nobody knows it. A base model's own training
    is never known. check: as in `PromptIndex.overlap`. Each file is read once.
    """
    index = PromptIndex(prompts)
    files = dict.fromkeys(path for _, known in models for _, path in known or ())
    overlaps = {path: index.overlap(path, check) for path in files}
    found = [(name, known, _whole(known, overlaps)) for name, known in models]
    report = {
        "prompts": len(prompts),
        "shorter_than_13_words": index.too_short,
        "models": [_of_model(name, known, overlap) for name, known, overlap in found],
    }
    return report, {name: len(seen) for name, _, overlap in found if (seen := overlap.equal | overlap.shared)}


def _whole(known: Sequence[tuple[str, Path]] | None, overlaps: Mapping[Path, Overlap]) -> Overlap:
    whole = Overlap()
    for _, path in known or ():
        whole |= overlaps[path]
    return whole


def _of_model(name: str, known: Sequence[tuple[str, Path]] | None, overlap: Overlap) -> dict[str, object]:
    if known is None:
        return {"model": name, "data": None, "equal": None, "shared_13_grams": None}
    return {"model": name, "data": [source for source, _ in known], **overlap.to_json()}


def _counted(numbers: Iterable[int]) -> dict[str, object]:
    rising = sorted(numbers)
    return {"prompts": len(rising), "first": list(islice(rising, FIRST))}


def _contents(path: Path, check: Callable[[], object]) -> Iterator[tuple[str, Content]]:
    """Columns' names and contents, row by row."""
    for batch in stream_batches(path):
        check()
        names = [name for name in TEXTS if name in batch.schema.names]
        count = batch.num_rows
        forms = batch.column("form").to_pylist() if "form" in batch.schema.names else ["text"] * count
        for name in names:
            for text, form in zip(batch.column(name).to_pylist(), forms, strict=True):
                yield name, load_content(text, form)
