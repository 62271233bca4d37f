"""What a plan writes into an evaluation, whatever its caller claims."""

from typing import Any

import pytest

from mpo.config import EvaluateStage
from mpo.errors import InvalidSpec
from mpo.job_spec import JobSpec
from mpo.plan import PlannedStage, Source, expand, plan_keys

LEAVES = {
    Source.model("tiny"): ("m" * 64, "model"),
    Source.model("job_1:rm"): ("j" * 64, "model"),
    Source.dataset("ds_1"): ("d" * 64, "pairs"),
    Source.dataset("ds_2"): ("e" * 64, "pairs"),
}


def plan(**values: Any) -> list[PlannedStage]:
    return expand(JobSpec.model_validate(values), model="tiny", dataset="ds_1")


def evaluation(stages: list[PlannedStage]) -> EvaluateStage:
    config = next(stage.config for stage in stages if stage.kind == "evaluate")
    assert isinstance(config, EvaluateStage)
    return config


def named(first: str, judge: str, **given: Any) -> list[dict[str, Any]]:
    """Two policies and a judge, of which the first policy and the judge have these names."""
    rows, start = {"data": "rows"}, {"policy": "tiny", "reference": "tiny"}
    return [
        {"name": "rows", "kind": "hold_out", "inputs": {"data": "ds_1"}},
        {"name": judge, "kind": "reward_model", "inputs": {"backbone": "tiny", **rows}},
        {"name": first, "kind": "dpo", "inputs": {**start, **rows}},
        {"name": "last", "kind": "dpo", "seed": 4, "inputs": {**start, **rows}},
        {
            "name": "look",
            "kind": "evaluate",
            **given,
            "inputs": {"models": ["tiny", first, "last"], "judge": judge, "data": "rows.eval"},
        },
    ]


def keys(first: str, judge: str, **given: Any) -> dict[str, str]:
    return plan_keys(plan(stages=named(first, judge, **given)), LEAVES)


def test_other_names_are_another_evaluation_and_no_other_work() -> None:
    ours, theirs, judged = keys("dpo", "judge"), keys("first", "judge"), keys("dpo", "other")
    assert len({ours["look"], theirs["look"], judged["look"]}) == 3
    assert ours["dpo"] == theirs["first"]
    assert ours["judge"] == judged["other"]


def test_names_are_the_plan_s_and_not_the_caller_s() -> None:
    found = evaluation(plan(stages=named("dpo", "judge", names={"models": ["a", "b", "c"]})))
    assert found.names == {"models": ["tiny", "dpo", "last"], "judge": ["judge"]}
    assert keys("dpo", "judge", names={"judge": ["x"]}) == keys("dpo", "judge")


@pytest.mark.parametrize(
    ("type_", "sft", "dpo"),
    [("mpo", ["sft"], ["dpo"]), ("dpo", ["sft"], ["dpo"]), ("ppo", ["sft"], None)],
)
def test_presets_say_what_kl_is_told_to(type_: str, sft: list[str], dpo: list[str] | None) -> None:
    names = evaluation(plan(method={"type": type_})).names or {}
    assert (names["sft"], names.get("dpo")) == (sft, dpo)
    names = evaluation(plan(method={"type": type_, "sft": None})).names or {}
    assert names["sft"] == ["tiny"]


def judged(judge_data: str, judge: str = "second", against: str = "rm", **given: Any) -> list[dict[str, Any]]:
    trained = {"kind": "reward_model", "seed": 9}
    return [
        {"name": "mine", "kind": "hold_out", "inputs": {"data": "ds_1"}},
        {"name": "theirs", "kind": "hold_out", "inputs": {"data": "ds_2"}},
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": "tiny", "data": "mine"}},
        {"name": "second", **trained, "inputs": {"backbone": "tiny", "data": judge_data}},
        {
            "name": "look",
            "kind": "evaluate",
            **given,
            "inputs": {"models": "tiny", "reward_model": against, "judge": judge, "data": "mine.eval"},
        },
    ]


@pytest.mark.parametrize(("data", "word"), [("theirs", "other_data"), ("mine", "other_seed")])
def test_a_judge_from_another_dataset_is_told_from_one_with_another_seed(data: str, word: str) -> None:
    assert evaluation(plan(stages=judged(data))).judge_independence == word
    assert evaluation(plan(stages=judged(data, judge_independence=word))).judge_independence == word


@pytest.mark.parametrize(
    ("data", "options"),
    [
        ("mine", {"judge_independence": "gold"}),
        ("mine", {"judge_independence": "other_data"}),
        ("theirs", {"judge_independence": "llm"}),
        ("mine", {"judge": "job_1:rm", "judge_independence": "gold"}),
        ("mine", {"judge": "job_1:rm", "against": "job_1:rm", "judge_independence": "other_data"}),
    ],
)
def test_an_independence_that_the_plan_does_not_find_is_refused(data: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSpec, match="the plan finds other_") as caught:
        plan(stages=judged(data, **options))
    assert caught.value.facts["loc"] == ("stages", 4, "judge_independence")


@pytest.mark.parametrize("claimed", ["other_seed", "other_data"])
def test_of_a_judge_from_another_job_the_caller_says_what_it_has_seen(claimed: str) -> None:
    stages = plan(stages=judged("mine", judge="job_1:rm", judge_independence=claimed))
    assert evaluation(stages).judge_independence == claimed


@pytest.mark.parametrize("type_", ["mpo", "dpo", "ppo"])
def test_a_preset_s_judge_has_another_seed_and_no_more(type_: str) -> None:
    assert evaluation(plan(method={"type": type_})).judge_independence == "other_seed"
    with pytest.raises(InvalidSpec) as caught:
        plan(method={"type": type_, "evaluate": {"judge_independence": "gold"}})
    assert caught.value.facts["loc"] == ("method", "evaluate", "judge_independence")
