"""The split against a plain reading of its rule, on gaps of any size, with ties, through its files."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpo.config import SplitStage
from mpo.errors import EmptySplit
from mpo.gap_cuts import cut_gaps, preview_split
from mpo.gap_index import GapIndex, SortedGaps, index_scores, open_index, read_scores
from mpo.records import PreferencePair, write_rows
from mpo.reporter import StageInput, StageTask
from mpo.reward_gaps import reward_gap_histogram
from mpo.split import split_by_gap
from tests.mpo.recording import RecordingReporter

PARTS = ("easy", "difficult", "dropped")
WAYS = ("threshold", "quantile", "easy_fraction")
SIGNS = ("signed", "absolute")
NEGATIVES = ("difficult", "drop", "flip", "keep_easy")

# Scores are fp32 rewards: no gap is larger than twice their largest value.
gap_sizes = st.one_of(
    st.sampled_from([0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 1e-300, -1e-300, 1e30, -1e30]),
    st.floats(-4, 4, width=32),
    st.floats(-1e30, 1e30, allow_nan=False),
)
gap_lists = st.lists(gap_sizes, min_size=1, max_size=40)
thresholds = st.one_of(gap_sizes, st.floats(-2, 2, width=16))
shares = st.floats(0.01, 0.99)


@dataclass(frozen=True)
class Placed:
    """Where the rule of the method puts a pair, and its gap there."""

    part: str
    gap: float


def threshold_by_the_rule(gaps: list[float], config: SplitStage) -> float:
    if config.threshold is not None:
        return config.threshold
    sizes = np.array(gaps) if config.sign == "signed" else np.abs(gaps)
    share = config.quantile if config.quantile is not None else 1 - float(config.easy_fraction or 0)
    return float(np.quantile(sizes, share, method="linear"))


def place_by_the_rule(gap: float, threshold: float, config: SplitStage) -> Placed:
    if config.sign == "absolute":
        return Placed("easy" if abs(gap) >= threshold else "difficult", gap)
    if gap >= threshold:
        return Placed("easy", gap)
    if gap < 0 and gap <= -abs(threshold):
        return {
            "difficult": Placed("difficult", gap),
            "drop": Placed("dropped", gap),
            "flip": Placed("easy", -gap),
            "keep_easy": Placed("easy", gap),
        }[config.negative]
    return Placed("difficult", gap)


def config_of(way: str, value: float, sign: str, negative: str) -> SplitStage:
    return SplitStage(**{way: value, "sign": sign, "negative": negative})  # type: ignore[arg-type]


configs = st.builds(
    lambda way, sign, negative: config_of(*way, sign, negative),
    st.tuples(st.just("threshold"), thresholds) | st.tuples(st.sampled_from(WAYS[1:]), shares),
    st.sampled_from(SIGNS),
    st.sampled_from(NEGATIVES),
)


@pytest.mark.parametrize(("way", "sign", "negative"), list(product(WAYS, SIGNS, NEGATIVES)))
@settings(max_examples=40, deadline=None)
@given(data=st.data(), gaps=gap_lists)
def test_every_option_places_every_pair_by_the_rule(
    way: str, sign: str, negative: str, data: st.DataObject, gaps: list[float]
) -> None:
    value = data.draw(thresholds if way == "threshold" else shares)
    config = config_of(way, value, sign, negative)
    rising = np.sort(np.array(gaps))
    threshold, cuts = cut_gaps(rising, config)
    assert threshold == threshold_by_the_rule(gaps, config)
    ordered = sorted((cut.start, cut.stop) for cut in cuts)
    assert ordered[0][0] == 0
    assert [start for start, _ in ordered[1:]] == [stop for _, stop in ordered[:-1]]
    assert ordered[-1][1] == len(gaps)
    for cut in cuts:
        for gap in rising[cut.start : cut.stop]:
            assert cut.part == place_by_the_rule(float(gap), threshold, config).part


@contextmanager
def split_files(gaps: list[float], config: SplitStage) -> Iterator[Path]:
    """The folder of a finished split, beside the scores that it was made of. Pair n has n + 3 tokens."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        rows = range(len(gaps))
        write_rows(
            folder / "train.parquet", [PreferencePair(f"p{n}", f"x{n % 5}", f"g{n}", f"b{n}") for n in rows]
        )
        scores = {
            "id": [f"p{n}" for n in rows],
            "reward_chosen": gaps,
            "reward_rejected": [0.0] * len(gaps),
            "gap": gaps,
            "tokens": [n + 3 for n in rows],
        }
        pq.write_table(pa.table(scores), folder / "scores.parquet")
        (folder / "out").mkdir()
        inputs = {
            "data": (StageInput("data", folder / "train.parquet"),),
            "scores": (StageInput("scores", folder / "scores.parquet"),),
        }
        split_by_gap(StageTask(config, inputs, folder / "out", seed=0), RecordingReporter())
        yield folder


def rows_of(folder: Path, part: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "out" / f"{part}.parquet").to_pylist()
    return rows


@settings(max_examples=60, deadline=None)
@given(gap_lists, configs)
def test_the_files_hold_every_pair_once_where_the_rule_puts_it(gaps: list[float], config: SplitStage) -> None:
    threshold = threshold_by_the_rule(gaps, config)
    placed = {f"p{n}": place_by_the_rule(gap, threshold, config) for n, gap in enumerate(gaps)}
    if not {"easy", "difficult"} <= {where.part for where in placed.values()}:
        with pytest.raises(EmptySplit), split_files(gaps, config):
            pass
        return
    with split_files(gaps, config) as folder:
        found = [(row["id"], Placed(part, row["gap"])) for part in PARTS for row in rows_of(folder, part)]
        told = pq.read_table(folder / "out" / "split.parquet").to_pylist()
    assert len(found) == len(gaps)
    assert dict(found) == placed
    assert {row["id"]: row["part"] for row in told} == {id_: where.part for id_, where in placed.items()}
    assert [row["gap"] for row in told] == gaps


@settings(max_examples=60, deadline=None)
@given(gap_lists, configs)
def test_the_preview_is_what_the_split_then_gives(gaps: list[float], config: SplitStage) -> None:
    try:
        with split_files(gaps, config) as folder:
            index = index_scores(read_scores(folder / "scores.parquet"))
            parts = {part: rows_of(folder, part) for part in PARTS}
    except EmptySplit:
        return
    preview = preview_split(index, config)
    # Sums over a part are differences of sums from the lowest gap on: exact to the rounding of the largest.
    rounding = 1e-9 * max(1.0, float(np.abs(gaps).sum()))
    for part, rows in parts.items():
        told = getattr(preview, part)
        assert told.pairs == len(rows)
        assert told.tokens == sum(int(row["id"][1:]) + 3 for row in rows)
        if not rows:
            assert (told.accuracy, told.mean_gap, told.expected_accuracy) == (None, None, None)
            continue
        kept = np.array([row["gap"] for row in rows])
        assert told.accuracy == ((kept > 0).sum() + (kept == 0).sum() / 2) / len(kept)
        assert told.mean_gap == pytest.approx(kept.mean(), abs=rounding)
        chances = 1 / (1 + np.exp(-np.minimum(np.abs(kept) / index.temperature, 700)))
        assert told.expected_accuracy == pytest.approx(chances.mean(), abs=1e-9)


@settings(max_examples=60, deadline=None)
@given(
    gap_lists,
    configs,
    st.integers(1, 60),
    st.none() | gap_sizes,
    st.none() | gap_sizes,
    st.sampled_from(SIGNS),
)
def test_histogram_of_any_part_equals_numpy_on_its_raw_gaps(
    gaps: list[float], config: SplitStage, bins: int, lower: float | None, upper: float | None, sign: Any
) -> None:
    if lower is not None and upper is not None:
        lower, upper = (min(lower, upper), max(lower, upper)) if lower != upper else (lower, None)
    try:
        with split_files(gaps, config) as folder:
            index = open_index(folder / "out" / "gaps")
            raw: dict[str, list[float]] = {part: [r["gap"] for r in rows_of(folder, part)] for part in PARTS}
            found = {
                part: reward_gap_histogram(
                    index, bins=bins, lower=lower, upper=upper, part=part, sign=sign
                ).to_json()
                for part in index.parts
            }
    except EmptySplit:
        return
    for part, told in found.items():
        values = np.array(gaps if part == "all" else raw[part])
        values = values if sign == "signed" else np.abs(values)
        edges = np.array(told["bin_edges"])
        assert len(edges) == bins + 1
        assert lower is None or edges[0] == lower
        assert upper is None or edges[-1] == upper
        assert told["counts"] == np.histogram(values, bins=edges)[0].tolist()
        assert told["below"] == int((values < edges[0]).sum())
        assert told["above"] == int((values > edges[-1]).sum())
        assert sum(told["counts"]) + told["below"] + told["above"] == told["pairs"] == len(values)
        if len(values):
            expected = np.quantile(values, [0.05, 0.25, 0.5, 0.75, 0.95], method="linear").tolist()
            assert list(told["quantiles"].values()) == expected


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=60),
    st.integers(1, 60),
    st.floats(-60, 60),
    st.floats(0.1, 90),
)
def test_bins_are_those_that_numpy_makes_of_a_range(
    gaps: list[float], bins: int, lower: float, width: float
) -> None:
    index = GapIndex({"all": SortedGaps.of(np.array(gaps), 1.0)}, 1.0)
    found = reward_gap_histogram(index, bins=bins, lower=lower, upper=lower + width)
    counts, edges = np.histogram(gaps, bins=bins, range=(lower, lower + width))
    assert (found.counts, found.bin_edges) == (counts.tolist(), edges.tolist())


@settings(max_examples=100, deadline=None)
@given(gap_lists, st.integers(0, 45), st.integers(0, 45))
def test_pages_are_the_rows_in_the_order_of_their_gaps(gaps: list[float], start: int, count: int) -> None:
    index = SortedGaps.of(np.array(gaps), 1.0)
    rows = range(len(gaps))
    assert index.rows("gap", start, count) == sorted(rows, key=lambda n: gaps[n])[start : start + count]
    by_size = sorted(rows, key=lambda n: abs(gaps[n]))
    assert index.rows("abs_gap", start, count) == by_size[start : start + count]
    assert index.rows("-abs_gap", start, count) == by_size[::-1][start : start + count]
