import json

import pytest

from mpo.job_spec import JobSpec, MPOMethod
from mpo.report import build_report


def test_every_stage_has_its_place_and_a_missing_one_is_null() -> None:
    spec = JobSpec(name="first", method=MPOMethod(type="mpo"))
    summaries = {
        "hold_out": {"groups": 9},
        "reward_model_fold_1": {"loss_last": 0.6},
        "reward_model": {"accuracy": 0.7},
        "judge": {"accuracy": 0.8},
        "score": {"weak": False},
        "dpo": {"loss_last": 0.5},
    }
    report = build_report(summaries, spec, {"rows": 10}, {"rows": 3})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["data"] == {
        "dataset": {"rows": 10},
        "eval_dataset": {"rows": 3},
        "hold_out": {"groups": 9},
    }
    assert report["reward_model"] == {
        "final": {"accuracy": 0.7},
        "folds": {"reward_model_fold_1": {"loss_last": 0.6}},
        "judge": {"accuracy": 0.8},
    }
    assert report["gaps"] == {"weak": False}
    assert report["stages"] == {"dpo": {"loss_last": 0.5}}
    assert (report["split"], report["evaluation"]) == (None, None)
    assert "2403.19443" in str(report["method"])


def test_explicit_stages_are_reported_by_name_and_found_by_kind() -> None:
    stages = [
        {"name": "rows", "kind": "hold_out", "inputs": {"data": "pairs"}},
        {"name": "a", "kind": "reward_model", "fold": 1, "folds": 2, "inputs": {}},
        {"name": "look", "kind": "reward_model", "inputs": {}},
        {"name": "final", "kind": "reward_model", "inputs": {}},
        {"name": "gaps", "kind": "score", "inputs": {}},
        {"name": "end", "kind": "evaluate", "inputs": {"judge": "look"}},
    ]
    spec = JobSpec.model_validate({"stages": stages})
    summaries = {str(stage["name"]): {"of": stage["name"]} for stage in stages}
    report = build_report(summaries, spec)
    assert report["stages"] == summaries
    assert report["reward_model"] == {
        "final": {"of": "final"},
        "folds": {"a": {"of": "a"}},
        "judge": {"of": "look"},
    }
    assert (report["gaps"], report["split"], report["evaluation"]) == ({"of": "gaps"}, None, {"of": "end"})


@pytest.mark.parametrize(("read_as", "final"), [("reward_model", {"of": "look"}), ("judge", None)])
def test_a_judge_that_was_trained_against_is_the_reward_model_too(read_as: str, final: object) -> None:
    stages = [
        {"name": "look", "kind": "reward_model", "inputs": {}},
        {"name": "ppo", "kind": "ppo", "inputs": {read_as: "look.model"}},
        {"name": "end", "kind": "evaluate", "inputs": {"judge": "look"}},
    ]
    report = build_report({"look": {"of": "look"}}, JobSpec.model_validate({"stages": stages}))
    assert report["reward_model"] == {"final": final, "folds": {}, "judge": {"of": "look"}}


def test_a_report_names_the_method_that_ran() -> None:
    report = build_report({}, JobSpec.model_validate({"method": {"type": "dpo"}}))
    assert "2305.18290" in str(report["method"])
