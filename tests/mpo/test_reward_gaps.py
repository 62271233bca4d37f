import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpo.errors import InvalidRange
from mpo.gap_index import GapIndex, SortedGaps
from mpo.intervals import wilson_interval
from mpo.reward_gaps import reward_gap_histogram

numbers = st.floats(-1e3, 1e3, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, -1.0, 0.5])
gaps_of_pairs = st.lists(numbers, min_size=1, max_size=80)


def index_of(gaps: list[float] | np.ndarray) -> GapIndex:
    return GapIndex({"all": SortedGaps.of(np.array(gaps, dtype=np.float64), 1.0)}, 1.0)


@given(
    gaps_of_pairs, st.integers(1, 50), st.sampled_from(["signed", "absolute"]), st.tuples(numbers, numbers)
)
def test_histogram_equals_numpy_on_the_raw_gaps(
    gaps: list[float], bins: int, sign: str, ends: tuple[float, float]
) -> None:
    lower, upper = min(ends), max(ends)
    if lower == upper:
        upper = lower + 1
    raw = np.array(gaps) if sign == "signed" else np.abs(gaps)
    found = reward_gap_histogram(index_of(gaps), bins=bins, lower=lower, upper=upper, sign=sign)
    expected, edges = np.histogram(raw, bins=np.linspace(lower, upper, bins + 1))
    assert found.counts == expected.tolist()
    assert found.bin_edges == edges.tolist()
    assert found.below == int((raw < lower).sum())
    assert sum(found.counts) + found.below + found.above == found.pairs == len(gaps)


@given(gaps_of_pairs, st.integers(1, 50))
def test_bins_cover_all_gaps_unless_told_otherwise(gaps: list[float], bins: int) -> None:
    found = reward_gap_histogram(index_of(gaps), bins=bins)
    assert (found.below, found.above, sum(found.counts)) == (0, 0, len(gaps))
    assert len(found.bin_edges) == bins + 1


def test_histogram_of_many_gaps_equals_numpy_s_own_bins() -> None:
    gaps = np.random.default_rng(3).normal(0.7, 2, 20_000).astype(np.float32).astype(np.float64)
    found = reward_gap_histogram(index_of(gaps), bins=40)
    expected, edges = np.histogram(gaps, bins=40)
    assert found.counts == expected.tolist()
    assert found.bin_edges == edges.tolist()


def test_numbers_beside_the_histogram_equal_those_of_the_raw_gaps() -> None:
    gaps = np.array([-2.0, -1.0, 0.0, 0.0, 0.5, 1.0, 3.0])
    found = reward_gap_histogram(index_of(gaps), bins=5)
    assert found.accuracy == (3 + 0.5 * 2) / 7
    assert found.accuracy_ci95 == wilson_interval(4, 7)
    assert found.share_within_one == 5 / 7
    assert found.quantiles == {str(q): float(np.quantile(gaps, q)) for q in (0.05, 0.25, 0.5, 0.75, 0.95)}
    assert found.mean == pytest.approx(gaps.mean(), abs=1e-15)
    assert found.std == pytest.approx(np.std(gaps), abs=1e-15)
    assert found.bin_accuracy is None


def test_absolute_gaps_have_an_accuracy_by_bin_with_ties_as_halves() -> None:
    found = reward_gap_histogram(
        index_of([-1.5, -0.2, 0.0, 0.2, 0.3, 1.7]), bins=3, lower=0, upper=3, sign="absolute"
    )
    assert found.counts == [4, 2, 0]
    assert found.bin_accuracy == [(2 + 0.5) / 4, 0.5, None]
    assert found.accuracy == 3.5 / 6
    assert found.mean == pytest.approx((1.5 + 0.2 + 0.2 + 0.3 + 1.7) / 6)


@given(gaps_of_pairs, st.integers(1, 20))
def test_accuracies_by_bin_add_up_to_the_accuracy(gaps: list[float], bins: int) -> None:
    found = reward_gap_histogram(index_of(gaps), bins=bins, sign="absolute")
    wins = sum(count * share for count, share in zip(found.counts, found.bin_accuracy, strict=True) if count)
    assert wins == pytest.approx(found.accuracy * len(gaps))


def test_gaps_that_are_all_equal_get_bins_around_them() -> None:
    found = reward_gap_histogram(index_of([0.7, 0.7, 0.7]), bins=4)
    expected, edges = np.histogram([0.7, 0.7, 0.7], bins=4)
    assert (found.counts, found.bin_edges) == (expected.tolist(), edges.tolist())


def test_bins_around_a_value_too_large_for_a_unit_are_wider() -> None:
    # Floats near 1e20 are 16,384 apart: 1e20 - 0.5 is 1e20.
    found = reward_gap_histogram(index_of([1e20]), bins=8)
    assert sum(found.counts) == 1
    assert len(set(found.bin_edges)) == 9
    assert reward_gap_histogram(index_of([0.0]), bins=8, lower=1e20).below == 1


def test_one_end_alone_may_lie_beyond_all_gaps() -> None:
    found = reward_gap_histogram(index_of([0.0, 1.0]), bins=2, lower=5)
    assert (found.below, found.counts, found.above) == (2, [0, 0], 0)
    found = reward_gap_histogram(index_of([0.0, 1.0]), bins=2, upper=-5)
    assert (found.below, found.counts, found.above) == (0, [0, 0], 2)


def test_empty_part_has_counts_of_zero_and_no_other_number() -> None:
    found = reward_gap_histogram(index_of([]), bins=3).to_json()
    assert (found["pairs"], found["counts"], found["accuracy"], found["mean"]) == (0, [0, 0, 0], None, None)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("ends", [(1.0, 1.0), (2.0, 1.0), (0.0, float("inf")), (float("nan"), 1.0)])
def test_ends_that_hold_no_range_are_refused(ends: tuple[float, float]) -> None:
    with pytest.raises(InvalidRange):
        reward_gap_histogram(index_of([0.0, 1.0]), lower=ends[0], upper=ends[1])
