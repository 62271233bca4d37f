import json

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
    report = build_report(summaries, spec, {"rows": 10})
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert report["data"] == {"dataset": {"rows": 10}, "hold_out": {"groups": 9}}
    assert report["reward_model"] == {
        "final": {"accuracy": 0.7},
        "folds": {"reward_model_fold_1": {"loss_last": 0.6}},
        "judge": {"accuracy": 0.8},
    }
    assert report["gaps"] == {"weak": False}
    assert report["stages"] == {"dpo": {"loss_last": 0.5}}
    assert (report["split"], report["evaluation"]) == (None, None)
    assert "2403.19443" in str(report["method"])
