import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedded import real_report
from embedded.__main__ import app
from embedded.errors import DemoFailed
from embedded.real_demo import job_spec, read_rows, unseen_prompts
from mpo.job_spec import JobSpec
from mpo_client.comparisons import Comparison
from mpo_client.jobs import Job, JobReport
from mpo_client.reward_gaps import RewardGaps

JOB = {
    "id": "job_1",
    "status": "succeeded",
    "stages": [
        {"name": "sft", "kind": "sft", "status": "succeeded", "started_at": 100, "finished_at": 107},
        {
            "name": "dpo",
            "kind": "dpo",
            "status": "succeeded",
            "cached": True,
            "started_at": 1,
            "finished_at": 1,
        },
    ],
}
MEAN = {"mean": 1.5, "ci95": [1.25, 1.75]}
RATE = {"model_a": "ppo", "model_b": "sft", "wins": 30, "losses": 9, "ties": 1, "win_rate": 0.7625}
EVALUATION = {
    "prompts": 40,
    "judge": {"name": "judge", "accuracy": 0.6, "accuracy_ci95": [0.44, 0.74], "pairs": 40},
    "judge_independence": "other_seed",
    "models": [
        {"model": "ppo", "reward": MEAN, "response_tokens": MEAN, "eos_rate": 0.5, "kl": {"sft": MEAN}},
    ],
    "win_rates": [{**RATE, "ci95": [0.61, 0.87], "length_controlled": 0.7}],
}
GAPS = {
    "job": "job_1",
    "pairs": 6,
    "bin_edges": [-1.0, 0.0, 1.0],
    "counts": [2, 4],
    "below": 0,
    "above": 0,
    "accuracy": 0.66,
    "accuracy_ci95": [0.4, 0.8],
    "share_within_one": 1.0,
    "mean": 0.1,
    "std": 0.5,
    "threshold": 0.2,
    "easy": 3,
    "difficult": 3,
    "dropped": 0,
    "scored_by": "cross_fit",
}
COMPARISON = {
    "id": "cmp_1",
    "status": "succeeded",
    "models": ["smollm2-135m", "job_1:ppo"],
    "rows": [
        {
            "index": 0,
            "prompt": "\n\nHuman: Why?\n\nAssistant:",
            "responses": [
                {"model": "smollm2-135m", "text": " a | b\n*c*", "score": 0.5},
                {"model": "job_1:ppo", "text": " d"},
            ],
        }
    ],
}


def found() -> real_report.Findings:
    return real_report.Findings(
        command="mpo demo --model smollm2-135m",
        model="smollm2-135m",
        pairs="pairs.jsonl.gz",
        sources=["somebody's"],
        used=200,
        job=Job.model_validate(JOB),
        report=JobReport.model_validate({"evaluation": EVALUATION}),
        gaps=RewardGaps.model_validate(GAPS),
        comparison=Comparison.model_validate(COMPARISON),
        temperature=0.7,
        seconds=1500.0,
    )


def dialogue(turn: str) -> dict[str, str]:
    return {"prompt": f"\n\nHuman: {turn}\n\nAssistant:", "chosen": " a", "rejected": " b"}


def test_the_job_is_a_spec_that_the_service_takes() -> None:
    spec = JobSpec.model_validate(job_spec("smollm2-135m", "ds_1", 200))

    assert spec.model == "smollm2-135m"
    method = spec.method.model_dump()  # type: ignore[union-attr]
    assert method["hold_out"]["fraction"] * 200 == method["evaluate"]["prompts"] == 40
    assert method["ppo"]["episodes"] == 100
    assert {method[stage]["lora"]["rank"] for stage in ("sft", "reward_model", "dpo", "ppo")} == {16}


def test_fewer_pairs_get_fewer_episodes() -> None:
    ppo = JobSpec.model_validate(job_spec("m", "ds_1", 24)).method.model_dump()["ppo"]  # type: ignore[union-attr]
    assert (ppo["episodes"], ppo["rollout_prompts"]) == (12, 12)


def test_shown_prompts_are_short_and_of_no_pair_that_was_uploaded() -> None:
    rows = [dialogue(turn) for turn in ("one?", "two?", "one?", "x" * 200, "three?", "four?", "five?")]
    assert unseen_prompts(rows, 2) == [dialogue(turn)["prompt"] for turn in ("three?", "four?", "five?")]  # type: ignore[arg-type]


@pytest.mark.parametrize("packed", [True, False])
def test_pairs_are_read_plain_or_packed(tmp_path: Path, packed: bool) -> None:
    text = json.dumps(dialogue("é\u2028?"), ensure_ascii=False).encode() + b"\n\n"
    (tmp_path / "pairs").write_bytes(gzip.compress(text) if packed else text)
    assert read_rows(tmp_path / "pairs") == [dialogue("é\u2028?")]


@pytest.mark.parametrize(
    "content", [b"", b"no json", b"[1]\n", b'{"chosen": 1}\n', b"\x1f\x8b broken", b"\xff"]
)
def test_a_file_without_pairs_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "pairs").write_bytes(content)
    with pytest.raises(DemoFailed, match="pairs"):
        read_rows(tmp_path / "pairs")
    with pytest.raises(DemoFailed):
        read_rows(tmp_path / "nowhere")


def test_the_page_tells_the_run() -> None:
    page = real_report.page(found())

    for part in (
        "the first 200 pairs of `pairs.jsonl.gz` (`somebody's`): 25 minutes",
        "    mpo demo --model smollm2-135m",
        "| ppo | 1.50 (1.25 to 1.75) |  | 2 | 0.50 | 1.5 |  |",
        "| ppo | sft | 30/9/1 | 0.76 | 0.61 to 0.87 | 0.70 |",
        "Intervals that exclude ½: ppo against sft: 0.76.",
        f"      -1.00 | {'#' * 20} 2\n      +0.00 | {'#' * 40} 4\n",
        "> Human: Why? Assistant:",
        "| smollm2-135m | +0.50 | a \\| b \\*c\\* |",
        "| sft | 7 |\n| dpo | cached |",
    ):
        assert part in page


def test_a_model_needs_pairs() -> None:
    said = CliRunner().invoke(app, ["demo", "--model", "smollm2-135m"])
    assert said.exit_code == 2
    assert "go together" in said.stderr
