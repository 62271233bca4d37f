import math

import numpy as np
import pytest

from mpo.config import ScoreStage
from mpo.errors import InvalidSpec, TooFewPrompts
from mpo.gap_index import fit_temperature
from mpo.hold_out import assign_folds
from mpo.reward_model.scheme import Scorers, assign_scorers, fold_temperatures, unfit_temperatures

GROUPS = [0, 0, 1, 2, 2, 2, 3, 4]


def test_cross_fit_gives_each_fold_its_own_model() -> None:
    folds = assign_folds(GROUPS, 3)
    assert assign_scorers(GROUPS, ScoreStage(folds=3), models=3) == Scorers(
        [fold - 1 for fold in folds], folds
    )


def test_held_out_scores_the_half_that_its_model_was_trained_without() -> None:
    scorers = assign_scorers(GROUPS, ScoreStage(scheme="held_out"), models=1)
    halves = assign_folds(GROUPS, 2)
    assert scorers.models == [0 if half == 1 else None for half in halves]
    assert set(scorers.models) == {0, None}
    assert set(scorers.folds) == {None}
    scored = {group for group, model in zip(GROUPS, scorers.models, strict=True) if model == 0}
    left = {group for group, model in zip(GROUPS, scorers.models, strict=True) if model is None}
    assert scored.isdisjoint(left), "a prompt group lies in both halves"


def test_in_sample_has_one_model_for_all() -> None:
    assert assign_scorers(GROUPS, ScoreStage(scheme="in_sample"), models=1) == Scorers([0] * 8, [None] * 8)


@pytest.mark.parametrize(
    ("scheme", "models", "needed"), [("cross_fit", 2, 3), ("held_out", 2, 1), ("in_sample", 3, 1)]
)
def test_another_number_of_models_is_refused(scheme: str, models: int, needed: int) -> None:
    with pytest.raises(InvalidSpec) as caught:
        assign_scorers(GROUPS, ScoreStage(scheme=scheme), models)
    assert caught.value.facts == {"scheme": scheme, "needed": needed, "models": models}


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(TooFewPrompts, match="no pairs"):
        assign_scorers([], ScoreStage(scheme="in_sample"), models=1)


def test_each_fold_gets_the_temperature_of_its_own_gaps() -> None:
    # Gaps of ±log 3·k, three quarters right, are as sure as their labels at temperature k: σ(log 3) = 3/4.
    three = math.log(3.0)
    gaps = np.array([three, three, three, -three, 2 * three, 2 * three, 2 * three, -2 * three])
    found = fold_temperatures(gaps, [2, 2, 2, 2, 1, 1, 1, 1])
    assert found == {1: pytest.approx(2.0, rel=1e-6), 2: pytest.approx(1.0, rel=1e-6)}
    assert list(found) == [1, 2]
    assert unfit_temperatures(found) == []
    assert fold_temperatures(gaps, [None] * 8) == {None: fit_temperature(gaps)}


def test_labels_that_fix_no_temperature_are_warned_about() -> None:
    gaps = np.array([1.0, 2.0, -1.0, -2.0, 1.0, 2.0, 2.0, -1.0])
    sure, unsure = unfit_temperatures(fold_temperatures(gaps, [1, 1, 2, 2, 3, 3, 3, 3]))
    assert "Fold 1's reward model ranks no pair against its label" in sure
    assert "divided by 0.01" in sure
    assert "Fold 2's reward model ranks no better than chance" in unsure
    assert "divided by 1e+03" in unsure
