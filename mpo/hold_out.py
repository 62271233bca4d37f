"""Prompt groups, the share of them that no training sees, and the folds of the rest. Torch-free."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import IO

import pyarrow as pa
import pyarrow.parquet as pq

from mpo.config import HoldOutStage
from mpo.errors import TooFewPrompts
from mpo.records import GROUP_FIELD, Content, load_content, parquet_writer, stream_batches, without
from mpo.reporter import Reporter, StageTask
from mpo.summaries import write_summary

OVERSHOOT = 1.5
"""A group that would bring the held-out pairs above this multiple of their target is passed over."""

FIRST_TURN = re.compile(r"\s*Human:(.*?)(?:\n\nAssistant:|\n\nHuman:)", re.DOTALL)

GroupKey = bytes
"""SHA-256 of what the prompts of a group share, then its kind; sorts in the order of the hold-out."""


def group_key(prompt: Content) -> GroupKey:
    """The group of a prompt: conversations (message lists, or strings in HH form) belong together by their
    first human turn, at whatever depth; any other string only with its equals."""
    if not isinstance(prompt, str):
        turns = [message["content"] for message in prompt if message["role"] == "user"]
        return _digest(turns[0] if turns else prompt[0]["content"]) + b"conversation"
    if "\n\nAssistant:" in prompt and (turn := FIRST_TURN.match(prompt)):
        return _digest(turn[1]) + b"conversation"
    return hashlib.sha256(prompt.encode()).digest() + b"text"


def _digest(turn: str) -> bytes:
    return hashlib.sha256(turn.strip().encode()).digest()


def held_out_groups(sizes: Mapping[GroupKey, int], fraction: float) -> set[GroupKey]:
    """The groups to hold out: in the order of their first turns' SHA-256, until they hold `fraction` of the
    pairs; at least one, never all, none that overshoots by half.

    sizes: pairs a group. Raises TooFewPrompts where no group can be taken.
    """
    pairs = sum(sizes.values())
    target = max(1.0, fraction * pairs)
    taken: set[GroupKey] = set()
    held = 0
    for key in sorted(sizes):
        if held >= target or len(taken) + 1 == len(sizes):
            break
        if held + sizes[key] <= OVERSHOOT * target:
            taken.add(key)
            held += sizes[key]
    if not taken:
        raise TooFewPrompts(
            f"Cannot hold out {fraction:g} of {pairs} pairs: their prompts form {len(sizes)} group(s), "
            f"the largest of {max(sizes.values(), default=0)} pairs, and a group is held out whole.",
            pairs=pairs,
            groups=len(sizes),
            fraction=fraction,
        )
    return taken


def assign_folds(groups: Sequence[int], folds: int) -> list[int]:
    """The fold, from 1, of each row: whole groups, largest first, dealt to the fold with the fewest rows.

    groups: the rows' group numbers; equal sizes go by group number. Raises TooFewPrompts where there are
    fewer groups than folds.
    """
    sizes = Counter(groups)
    if len(sizes) < folds:
        raise TooFewPrompts(
            f"{folds} folds need at least as many prompt groups; there are {len(sizes)}.",
            groups=len(sizes),
            folds=folds,
        )
    rows_by_fold = [(0, fold) for fold in range(1, folds + 1)]
    fold_of: dict[int, int] = {}
    for group, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0])):
        rows, fold = rows_by_fold[0]
        fold_of[group] = fold
        heapq.heapreplace(rows_by_fold, (rows + size, fold))
    return [fold_of[group] for group in groups]


def row_keys(path: Path | IO[bytes]) -> list[GroupKey]:
    """The group of each row of a canonical file, in order: of pairs and prompts by the prompt; texts belong
    together only when equal."""
    if "text" in pq.read_schema(path).names:
        return [
            hashlib.sha256(text.encode()).digest() + b"text"
            for batch in stream_batches(path, ["text"])
            for text in batch.column("text").to_pylist()
        ]
    return [
        group_key(load_content(prompt, form))
        for batch in stream_batches(path, ["prompt", "form"])
        for prompt, form in zip(*(column.to_pylist() for column in batch.columns), strict=True)
    ]


def hold_out_groups(task: StageTask, reporter: Reporter) -> None:
    """The stage `hold_out`: canonical rows -> train.parquet and eval.parquet, with the column `group`.

    The rows are pairs, prompts or texts. Given an evaluation dataset, that is eval.parquet and all pairs are
    train. Groups are numbered by their first row, the data's before the evaluation dataset's. Raises
    TooFewPrompts.
    """
    assert isinstance(task.config, HoldOutStage)
    data = task.one("data").path
    keys = row_keys(data)
    eval_data = task.one("eval").path if "eval" in task.inputs else None
    eval_keys = row_keys(eval_data) if eval_data else []
    numbers: dict[GroupKey, int] = {}
    for key in [*keys, *eval_keys]:
        numbers.setdefault(key, len(numbers))
    held_out: set[GroupKey] = set(eval_keys)
    if eval_data is None and task.config.fraction > 0:
        held_out = held_out_groups(Counter(keys), task.config.fraction)
    train = {numbers[key] for key in keys if eval_data or key not in held_out}
    evaluation = {numbers[key] for key in held_out}
    rows = [numbers[key] for key in keys]
    eval_rows = [numbers[key] for key in eval_keys] if eval_data else rows
    train_pairs = _write_part(data, task.output / "train.parquet", rows, train)
    eval_pairs = _write_part(eval_data or data, task.output / "eval.parquet", eval_rows, evaluation)
    if shared := len(train & evaluation):
        reporter.warn(f"{shared} prompt group(s) of the evaluation dataset are in the training pairs too.")
    summary = {
        "pairs": train_pairs + eval_pairs,
        "train": train_pairs,
        "eval": eval_pairs,
        "groups": len(numbers),
        "train_groups": len(train),
        "eval_groups": len(evaluation),
        "shared_groups": shared,
    }
    write_summary(task.output, summary)
    reporter.progress(1, 1, {"train": train_pairs, "eval": eval_pairs})


def _write_part(source: Path, target: Path, groups: Sequence[int], kept: Container[int]) -> int:
    """Copies the rows whose group is kept; returns their number. groups: the group of each row of source."""
    start = written = 0
    own = {GROUP_FIELD.name}
    schema = without(pq.read_schema(source).empty_table(), own).schema.append(GROUP_FIELD)
    with parquet_writer(target, schema) as writer:
        for batch in stream_batches(source):
            numbers = groups[start : start + batch.num_rows]
            start += batch.num_rows
            column = pa.array(numbers, pa.int64())
            part = without(pa.Table.from_batches([batch]), own).append_column(GROUP_FIELD, column)
            part = part.filter(pa.array([number in kept for number in numbers]))
            writer.write_table(part)
            written += part.num_rows
    return written
