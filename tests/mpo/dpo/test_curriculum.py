from collections.abc import Sequence

import pytest

from mpo.config import DPOStage
from mpo.dpo.curriculum import Pass, plan_passes
from mpo.errors import InvalidScores
from mpo.records import PreferencePair


def pairs_of(gaps: Sequence[float | None]) -> list[PreferencePair]:
    return [PreferencePair(f"p{row}", "a", "b", "c", gap=gap) for row, gap in enumerate(gaps)]


def plan(
    gaps: Sequence[float | None], curriculum: list[float] | None, warnings: list[str], **options: int
) -> list[Pass]:
    config = DPOStage.model_validate({"curriculum": curriculum, "batch_pairs": 2, **options})
    return plan_passes(pairs_of(gaps), config, warnings.append)


def test_bands_fall_from_the_largest_gaps_and_hold_their_lower_threshold() -> None:
    warnings: list[str] = []
    passes = plan([1.0, 3.0, -5.0, 2.0, 0.5, 1.99, 9.0], [2.0, 1.0], warnings)
    assert [(list(p.rows), p.at_least, p.below, p.steps) for p in passes] == [
        ([1, 3, 6], 2.0, None, 2),
        ([0, 5], 1.0, 2.0, 1),
        ([2, 4], None, 1.0, 1),
    ]
    assert warnings == []


def test_a_band_without_a_pair_is_passed_over_with_a_warning() -> None:
    warnings: list[str] = []
    passes = plan([0.0, 1.0], [3.0, 2.0, -1.0], warnings)
    assert [(list(p.rows), p.at_least, p.below) for p in passes] == [([0, 1], -1.0, 2.0)]
    assert warnings == [
        "No pair has a gap from 3 on: the curriculum passes this band over.",
        "No pair has a gap from 2 on and below 3: the curriculum passes this band over.",
        "No pair has a gap below -1: the curriculum passes this band over.",
    ]


def test_max_steps_bounds_the_passes_together() -> None:
    gaps = [3.0] * 4 + [1.0] * 4 + [0.0] * 4  # 2 steps a pass over the data, 2 passes: 4 a band
    assert [p.steps for p in plan(gaps, [2.0, 0.5], [], epochs=2)] == [4, 4, 4]
    assert [p.steps for p in plan(gaps, [2.0, 0.5], [], epochs=2, max_steps=7)] == [4, 3]
    assert [p.steps for p in plan(gaps, [2.0, 0.5], [], epochs=2, max_steps=4)] == [4]


def test_without_a_curriculum_no_gap_is_needed() -> None:
    passes = plan([None, None, None], None, [])
    assert [(list(p.rows), p.at_least, p.below, p.steps) for p in passes] == [([0, 1, 2], None, None, 2)]


@pytest.mark.parametrize("gap", [None, float("nan")])
def test_a_pair_without_a_gap_is_named(gap: float | None) -> None:
    with pytest.raises(InvalidScores, match="pair p1 has none") as caught:
        plan([1.0, gap], [0.5], [])
    assert caught.value.facts == {"pair": "p1"}
