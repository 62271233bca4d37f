"""Parts scored pairs by reward gap: easy ones for DPO, difficult ones for PPO. Torch-free.

Gou and Nguyen, arXiv 2403.19443; `mpo.gap_cuts` decides which pair goes where.
"""

from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mpo.config import SplitStage
from mpo.errors import EmptySplit, InvalidScores
from mpo.gap_cuts import WHY, Cut, SplitPreview, cut_gaps, preview_split
from mpo.gap_index import Floats, GapIndex, Integers, Scores, SortedGaps, fit_temperature, read_scores
from mpo.parts import TARGETS, Part
from mpo.records import GAP_FIELD, parquet_writer, stream_batches, without
from mpo.reporter import Reporter, StageTask
from mpo.summaries import write_summary

__all__ = ["SPLIT_SCHEMA", "match_scores", "preview_split", "split_by_gap"]

SCORE_FIELDS = (
    GAP_FIELD,
    pa.field("reward_chosen", pa.float64()),
    pa.field("reward_rejected", pa.float64()),
    pa.field("fold", pa.int64()),
)
SCORE_NAMES = {field.name for field in SCORE_FIELDS}
SPLIT_SCHEMA = pa.schema(
    [("id", pa.string()), ("part", pa.string()), ("why", pa.string()), GAP_FIELD, ("row", pa.int64())]
)


@dataclass(frozen=True)
class Assignment:
    """Where each scored pair goes; arrays are (n,), in the order of the data's scored rows.

    places: the pair's row in the scores. gaps: as scored. part, why: indices of `TARGETS`, `WHY`. flipped:
    pairs whose sides are exchanged.
    """

    places: Integers
    gaps: Floats
    tokens: Integers | None
    part: Integers
    why: Integers
    flipped: npt.NDArray[np.bool_]


def assign_parts(places: Integers, scores: Scores, gaps: SortedGaps, cuts: list[Cut]) -> Assignment:
    """The part of each scored pair. places: (n,), its row in the scores; gaps: theirs, sorted."""
    part, why = np.zeros((2, len(places)), np.int64)
    for cut in cuts:
        part[gaps.order[cut.start : cut.stop]] = TARGETS.index(cut.part)
        why[gaps.order[cut.start : cut.stop]] = WHY.index(cut.why)
    tokens = None if scores.tokens is None else scores.tokens[places]
    return Assignment(places, scores.gaps[places], tokens, part, why, why == WHY.index("negative_flip"))


def split_by_gap(task: StageTask, reporter: Reporter) -> None:
    """The stage `split`: pairs and their scores -> easy, difficult and dropped pairs, and the gap index.

    Pairs without a score are in no part. Raises EmptySplit where no pair is easy or none is difficult,
    InvalidScores where the scores do not fit the pairs.
    """
    assert isinstance(task.config, SplitStage)
    data = task.one("data").path
    scores = read_scores(task.one("scores").path)
    places = match_scores(data, scores)
    scored = places[places >= 0]
    temperature = fit_temperature(scores.gaps[scored])
    tokens = None if scores.tokens is None else scores.tokens[scored]
    whole = SortedGaps.of(scores.gaps[scored], temperature, tokens)
    threshold, cuts = cut_gaps(whole.gaps, task.config)
    preview = preview_split(GapIndex({"all": whole}, temperature), task.config)
    _refuse_empty(preview, whole.gaps)
    assignment = assign_parts(scored, scores, whole, cuts)
    shared_prompts = _write_parts(data, task.output, places >= 0, scores, assignment)
    _write_split(task.output / "split.parquet", scores, assignment)
    _index_parts(whole, temperature, assignment).save(task.output / "gaps")
    counts: dict[str, int] = {p: int((assignment.part == n).sum()) for n, p in enumerate(TARGETS)}
    summary = {
        "pairs": len(scored),
        "unscored": len(places) - len(scored),
        "threshold": threshold,
        **counts,
        "sign": task.config.sign,
        "negative": task.config.negative,
        "flipped": int(assignment.flipped.sum()),
        "temperature": temperature,
        "prompts_in_easy_and_difficult": shared_prompts,
        "parts": {part: asdict(getattr(preview, part)) for part in TARGETS},
    }
    write_summary(task.output, summary)
    reporter.progress(1, 1, {"threshold": threshold} | counts)


def match_scores(data: Path, scores: Scores) -> Integers:
    """The row in the scores of each row of a pair file, -1 where it has none: (rows,).

    Raises InvalidScores where a score is of no pair.
    """
    ids = pq.read_table(data, columns=["id"]).column("id")
    found = pc.index_in(ids, value_set=pa.array(scores.ids, pa.string()))
    places: Integers = found.fill_null(-1).to_numpy().astype(np.int64)
    matched = int((places >= 0).sum())
    if matched != len(scores.ids):
        raise InvalidScores(
            f"{len(scores.ids) - matched} of {len(scores.ids)} scores are of no pair in the data.",
            scores=len(scores.ids),
            matched=matched,
        )
    return places


def _refuse_empty(preview: SplitPreview, gaps: Floats) -> None:
    if preview.easy.pairs and preview.difficult.pairs:
        return
    empty = "difficult" if preview.easy.pairs else "easy"
    raise EmptySplit(
        f"The threshold {preview.threshold:g} leaves no {empty} pair: the gaps lie between {gaps[0]:g} and "
        f"{gaps[-1]:g}; easy {preview.easy.pairs}, difficult {preview.difficult.pairs}, dropped "
        f"{preview.dropped.pairs}.",
        threshold=preview.threshold,
        lowest_gap=float(gaps[0]),
        highest_gap=float(gaps[-1]),
        easy=preview.easy.pairs,
        difficult=preview.difficult.pairs,
        dropped=preview.dropped.pairs,
    )


def _write_parts(
    data: Path, output: Path, scored: npt.NDArray[np.bool_], scores: Scores, assignment: Assignment
) -> int:
    """Writes easy, difficult and dropped.parquet; returns how many prompts are both easy and difficult."""
    schema = without(pq.read_schema(data).empty_table(), SCORE_NAMES).schema
    for score_field in SCORE_FIELDS:
        schema = schema.append(score_field)
    prompts: list[set[str]] = [set() for _ in TARGETS]
    row = place = 0
    with ExitStack() as stack:
        writers = [
            stack.enter_context(parquet_writer(output / f"{part}.parquet", schema)) for part in TARGETS
        ]
        for batch in stream_batches(data):
            kept = scored[row : row + batch.num_rows]
            row += batch.num_rows
            here = slice(place, place := place + int(kept.sum()))
            table = _scored_table(
                pa.Table.from_batches([batch]).filter(pa.array(kept)), scores, assignment, here
            )
            for number, writer in enumerate(writers):
                part = table.filter(pa.array(assignment.part[here] == number)).cast(schema)
                writer.write_table(part)
                prompts[number].update(part.column("prompt").to_pylist())
    return len(prompts[TARGETS.index("easy")] & prompts[TARGETS.index("difficult")])


def _scored_table(pairs: pa.Table, scores: Scores, assignment: Assignment, here: slice) -> pa.Table:
    """The pairs with their scores; where flipped, sides and rewards exchanged and the gap's sign turned."""
    places, flipped = assignment.places[here], assignment.flipped[here]
    chosen, rejected = scores.reward_chosen[places], scores.reward_rejected[places]
    gaps = assignment.gaps[here]
    columns = (
        np.where(flipped, -gaps, gaps),
        np.where(flipped, rejected, chosen),
        np.where(flipped, chosen, rejected),
        [scores.folds[place] for place in places],
    )
    pairs = without(pairs, SCORE_NAMES)
    for field, column in zip(SCORE_FIELDS, columns, strict=True):
        pairs = pairs.append_column(field, pa.array(column, field.type))
    if not flipped.any():
        return pairs
    mask, old = pa.array(flipped), {name: pairs.column(name) for name in ("chosen", "rejected", "margin")}
    exchanged = {
        "chosen": pc.if_else(mask, old["rejected"], old["chosen"]),
        "rejected": pc.if_else(mask, old["chosen"], old["rejected"]),
        # A margin was stated for the label that no longer holds.
        "margin": pc.if_else(mask, None, old["margin"]),
    }
    for name, column in exchanged.items():
        place = pairs.schema.get_field_index(name)
        pairs = pairs.set_column(place, pairs.schema.field(place), column)
    return pairs


def _write_split(path: Path, scores: Scores, assignment: Assignment) -> None:
    """Every scored pair, in the data's order. row: its row in its part's file."""
    rows = np.zeros(len(assignment.part), np.int64)
    for number in range(len(TARGETS)):
        rows[assignment.part == number] = np.arange(int((assignment.part == number).sum()))
    columns = [
        [scores.ids[place] for place in assignment.places],
        [TARGETS[number] for number in assignment.part],
        [WHY[number] for number in assignment.why],
        assignment.gaps,
        rows,
    ]
    arrays = [pa.array(column, field.type) for column, field in zip(columns, SPLIT_SCHEMA, strict=True)]
    with parquet_writer(path, SPLIT_SCHEMA) as writer:
        writer.write_table(pa.Table.from_arrays(arrays, schema=SPLIT_SCHEMA))


def _index_parts(whole: SortedGaps, temperature: float, assignment: Assignment) -> GapIndex:
    gaps = np.where(assignment.flipped, -assignment.gaps, assignment.gaps)
    parts: dict[Part, SortedGaps] = {"all": whole}
    for number, part in enumerate(TARGETS):
        here = assignment.part == number
        tokens = None if assignment.tokens is None else assignment.tokens[here]
        parts[part] = SortedGaps.of(gaps[here], temperature, tokens)
    return GapIndex(parts, temperature)
