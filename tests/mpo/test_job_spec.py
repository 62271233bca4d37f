from typing import Any

import pytest
from pydantic import ValidationError

from mpo.field_paths import written_path
from mpo.job_spec import JobSpec

HOLD_OUT = {"name": "rows", "kind": "hold_out", "inputs": {"data": "ds_1"}}


def refused(document: dict[str, Any]) -> list[tuple[str | int, ...]]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(document)
    return [written_path(JobSpec, error["loc"]) for error in caught.value.errors()]


@pytest.mark.parametrize("document", [{}, {"method": {"type": "sft"}, "stages": [HOLD_OUT]}])
def test_a_spec_has_a_method_or_stages(document: dict[str, Any]) -> None:
    assert refused(document) == [("method",)]


def test_stages_that_are_refused_are_not_asked_for_a_method_too() -> None:
    assert refused({"stages": [{**HOLD_OUT, "fraction": 2}]}) == [("stages", 0, "fraction")]


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"name": "rows.1"}, ("stages", 0, "name")),
        ({"name": ""}, ("stages", 0, "name")),
        ({"kind": "magic"}, ("stages", 0, "kind")),
        ({"kind": ["sft"]}, ("stages", 0, "kind")),
        ({"kind": None}, ("stages", 0, "kind")),
        ({"seed": -1}, ("stages", 0, "seed")),
        ({"frction": 0.1}, ("stages", 0, "frction")),
        ({"inputs": {"data": []}}, ("stages", 0, "inputs", "data")),
    ],
)
def test_a_wrong_stage_names_the_field(change: dict[str, Any], place: tuple[str | int, ...]) -> None:
    assert place in refused({"stages": [HOLD_OUT | change]})


def test_a_stage_without_a_kind_is_asked_for_it() -> None:
    assert refused({"stages": [{"name": "rows", "inputs": {}}]}) == [("stages", 0, "kind")]


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"data": []}, ("data",)),
        ({"data": 1}, ("data",)),
        ({"data": {"x": 1}}, ("data",)),
        ({"data": None}, ("data",)),
        ({"data": ""}, ("data",)),
        ({"data": ["a", 1]}, ("data", 1)),
        ({"data": ["a", ""]}, ("data", 1)),
    ],
)
def test_a_wrong_input_is_refused_once_and_where_it_was_written(
    given: dict[str, Any], place: tuple[str | int, ...]
) -> None:
    assert refused({"stages": [HOLD_OUT | {"inputs": given}]}) == [("stages", 0, "inputs", *place)]


@pytest.mark.parametrize("role", ["\ud800", "a\0", "", "Data", "data\n", "a" * 41])
def test_a_role_that_is_no_word_is_refused_without_its_name(role: str) -> None:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate({"stages": [HOLD_OUT | {"inputs": {"data": "ds_1", role: "ds_2"}}]})
    (error,) = caught.value.errors()
    assert written_path(JobSpec, error["loc"]) == ("stages", 0, "inputs")
    error["msg"].encode()
    assert "lower-case words" in error["msg"]


def test_a_preset_takes_the_stages_that_it_has() -> None:
    assert refused({"method": {"type": "sft", "dpo": {}}}) == [("method", "dpo")]
    assert refused({"method": {"type": "reward_model", "sft": None}}) == [("method", "sft")]
    assert refused({"method": {"type": "sft", "sft": None}}) == [("method", "sft")]


@pytest.mark.parametrize("type_", ["mpo", "dpo", "ppo"])
def test_nothing_held_out_is_nothing_to_evaluate_on(type_: str) -> None:
    method = {"type": type_, "hold_out": {"fraction": 0}}
    assert refused({"method": method}) == [("method", "hold_out", "fraction")]
    JobSpec.model_validate({"method": {**method, "evaluate": None}})
    JobSpec.model_validate({"method": method, "eval_dataset": "ds_2"})


@pytest.mark.parametrize("type_", ["sft", "reward_model"])
def test_what_evaluates_nothing_may_hold_nothing_out(type_: str) -> None:
    JobSpec.model_validate({"method": {"type": type_, "hold_out": {"fraction": 0}}})


@pytest.mark.parametrize(
    ("method", "place"),
    [
        ({"type": "reward_model", "reward_model": {"backbone": "sft"}}, ("reward_model", "backbone")),
        ({"type": "ppo", "sft": None, "reward_model": {"backbone": "sft"}}, ("reward_model", "backbone")),
        ({"type": "dpo", "sft": None, "judge": {"backbone": "sft"}}, ("judge", "backbone")),
        ({"type": "mpo", "reward_model": {"fold": 1, "folds": 2}}, ("reward_model", "fold")),
        ({"type": "dpo", "dpo": {"curriculum": [2.0, 1.0]}}, ("dpo", "curriculum")),
    ],
)
def test_what_the_preset_s_other_stages_cannot_serve_is_refused(
    method: dict[str, Any], place: tuple[str, ...]
) -> None:
    assert refused({"method": method}) == [("method", *place)]
