import json
import re
import socket
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embedded import demo_report as report
from embedded.__main__ import app
from embedded.shipped import examples_folder
from mpo.job_spec import JobSpec
from mpo_client.comparisons import Comparison
from mpo_client.jobs import Job

JOB = {
    "id": "job_1",
    "status": "failed",
    "error": {"code": "stage_failed", "message": "stage ppo failed"},
    "stages": [
        {
            "name": "sft",
            "kind": "sft",
            "status": "succeeded",
            "cached": True,
            "metrics": {"loss": 0.5, "note": "x"},
        },
        {
            "name": "ppo",
            "kind": "ppo",
            "status": "failed",
            "started_at": 100,
            "finished_at": 107,
            "error": {"code": "out_of_memory", "message": "no memory left", "output": "Traceback …"},
        },
    ],
}


def test_the_demo_s_job_is_a_spec_that_the_service_takes() -> None:
    examples = examples_folder()
    assert examples is not None
    spec = JobSpec.model_validate(json.loads((examples / "demo_job.json").read_text()))

    assert spec.model == "tiny"
    assert spec.method.reward_model.on_weak == "warn"


def test_a_failure_tells_the_stage_its_error_and_its_output() -> None:
    said = report.failure(Job.model_validate(JOB))

    for part in ("job_1 failed", "stage ppo failed", "out_of_memory: no memory left", "Traceback …"):
        assert part in said


def test_each_change_of_a_stage_is_told_once(capsys: pytest.CaptureFixture[str]) -> None:
    progress = report.Progress()
    job = Job.model_validate(JOB)

    progress.show(job)
    progress.show(job)

    lines = [line.partition("] ")[2] for line in capsys.readouterr().out.splitlines()]
    assert lines == ["sft: cached", "ppo: failed after 7 s"]


def test_how_far_a_stage_is_names_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"name": "dpo", "kind": "dpo", "status": "running"}
    stage["progress"] = {"step": 3, "total_steps": 34, "eta_seconds": 11.6}  # type: ignore[assignment]
    job = {"id": "job_1", "status": "running", "stages": [stage], "progress": {"eta_seconds": 40}}

    report.Progress().show(Job.model_validate(job))

    assert "dpo: step 3 of 34, 12 s left (job: 40 s left)" in capsys.readouterr().out


def test_the_table_of_stages_lines_up(capsys: pytest.CaptureFixture[str]) -> None:
    report.stages(Job.model_validate(JOB))

    head, rule, first, second = capsys.readouterr().out.splitlines()
    assert re.split(r"  +", head) == ["stage", "status", "seconds", "last metrics"]
    assert first.index("cached") == second.index("failed") == head.index("status") == rule.index(" ") + 2
    assert first.endswith("loss 0.5")


def test_win_rates_come_with_their_intervals(capsys: pytest.CaptureFixture[str]) -> None:
    rate = {"model_a": "job_1:ppo", "model_b": "job_1:sft", "wins": 3, "losses": 1, "ties": 0}
    row = {
        "index": 0,
        "prompt": "\n\nHuman: Hi?",
        "responses": [{"model": "job_1:ppo", "text": "", "score": 1.5}],
    }
    found = {
        "id": "cmp_1",
        "status": "succeeded",
        "models": ["job_1:ppo", "job_1:sft"],
        "rows": [row],
        "win_rates": [{**rate, "win_rate": 0.75, "ci95": [0.3, 0.95], "n": 4}],
    }

    report.comparison(Comparison.model_validate(found), shown=3)

    said = capsys.readouterr().out
    assert "ppo    sft      3/1/0          0.750     0.300 to 0.950  4" in said
    assert "prompt | Human: Hi?" in said
    assert "ppo +1.50 |" in said


def test_a_service_that_does_not_start_ends_the_demo_with_its_reason(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = CliRunner().invoke(app, ["demo", "--state", str(tmp_path), "--port", port])

    assert said.exit_code == 1
    assert f"port {port} is taken on 127.0.0.1" in said.stderr
