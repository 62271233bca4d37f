from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.errors import InvalidScores
from mpo.gap_index import (
    GapIndex,
    SortedGaps,
    expected_accuracies,
    fit_temperature,
    index_scores,
    open_index,
    read_scores,
)

GAPS = np.array([0.5, -2.0, 0.5, 3.0, -0.25])


def negative_log_likelihood(gaps: np.ndarray, temperature: float) -> float:
    return float(np.logaddexp(0, -gaps / temperature).sum())


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=50))
def test_fitted_temperature_is_the_likeliest_within_its_bounds(values: list[float]) -> None:
    gaps = np.array(values)
    found = fit_temperature(gaps)
    assert 0.01 * (1 - 1e-6) <= found <= 1000 * (1 + 1e-6)
    lowest = min(negative_log_likelihood(gaps, t) for t in np.geomspace(0.01, 1000, 200))
    assert negative_log_likelihood(gaps, found) <= lowest + 1e-9 * max(1, lowest)


def test_temperature_recovers_the_one_that_labels_were_drawn_with() -> None:
    generator = np.random.default_rng(0)
    sizes = generator.exponential(3, 40_000)
    right = generator.random(40_000) < 1 / (1 + np.exp(-sizes / 2.5))
    assert fit_temperature(np.where(right, sizes, -sizes)) == pytest.approx(2.5, rel=0.03)


def test_temperature_of_gaps_that_are_all_right_or_all_wrong_is_at_its_bounds() -> None:
    assert fit_temperature(np.array([1.0, 2.0])) == pytest.approx(0.01)
    assert fit_temperature(np.array([-1.0, -2.0])) == pytest.approx(1000)


def test_expected_accuracy_is_a_sigmoid_of_the_gap_s_size() -> None:
    assert expected_accuracies(np.array([-2.0, 0.0, 2.0]), 1.0) == pytest.approx(
        [0.880797, 0.5, 0.880797], abs=1e-6
    )


def test_pages_follow_the_order_asked_for() -> None:
    gaps = SortedGaps.of(GAPS, 1.0)
    assert gaps.rows("gap", 0, 3) == [1, 4, 0]
    assert gaps.rows("gap", 3, 10) == [2, 3]
    assert gaps.rows("-gap", 0, 2) == [3, 2]
    assert gaps.rows("-gap", 2, 2) == [0, 4]
    assert gaps.rows("-gap", 4, 9) == [1]
    assert gaps.rows("-gap", 5, 9) == []
    assert gaps.rows("abs_gap", 0, 2) == [4, 0]
    assert gaps.rows("-abs_gap", 0, 2) == [3, 1]


def test_index_comes_back_from_its_folder_as_memory_maps(tmp_path: Path) -> None:
    tokens = np.array([5, 6, 7, 8, 9])
    parts = {"all": SortedGaps.of(GAPS, 1.5, tokens), "dropped": SortedGaps.of(GAPS[:0], 1.5)}
    GapIndex(parts, 1.5).save(tmp_path / "gaps")
    found = open_index(tmp_path / "gaps")
    assert found.temperature == 1.5
    assert list(found.parts) == ["all", "dropped"]
    assert isinstance(found.parts["all"].gaps, np.memmap)
    assert found.parts["all"].gaps.tolist() == sorted(GAPS)
    assert found.parts["all"].token_sums.tolist() == [0, 6, 15, 20, 27, 35]
    assert found.parts["dropped"].token_sums is None
    assert len(found.parts["dropped"].gaps) == 0


def write_scores(path: Path, **changed: list[object]) -> Path:
    columns = {
        "id": ["a", "b"],
        "reward_chosen": [1.0, 2.0],
        "reward_rejected": [0.5, 3.0],
        "gap": [0.5, -1.0],
    }
    pq.write_table(pa.table(columns | changed), path)
    return path


def test_scores_are_indexed_before_there_is_a_split(tmp_path: Path) -> None:
    index = index_scores(read_scores(write_scores(tmp_path / "s.parquet", fold=[1, 2], tokens=[10, 20])))
    assert index.parts["all"].gaps.tolist() == [-1.0, 0.5]
    assert index.parts["all"].token_sums.tolist() == [0, 20, 30]


def test_folds_and_tokens_may_be_missing_from_scores(tmp_path: Path) -> None:
    scores = read_scores(write_scores(tmp_path / "s.parquet"))
    assert (scores.folds, scores.tokens) == ([None, None], None)


@pytest.mark.parametrize(
    "changed", [{"gap": [0.5, float("nan")]}, {"reward_chosen": [1.0, float("inf")]}, {"id": ["a", "a"]}]
)
def test_scores_that_are_no_numbers_or_come_twice_are_refused(
    tmp_path: Path, changed: dict[str, list[object]]
) -> None:
    with pytest.raises(InvalidScores):
        read_scores(write_scores(tmp_path / "s.parquet", **changed))
