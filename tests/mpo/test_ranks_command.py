"""`python -m mpo run` under torchrun against the same command in one process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mpo.__main__ import main
from mpo.errors import InvalidSpec
from mpo.rank_environment import is_launched
from tests.mpo.tiny import write_lines, write_policy

SPEC = """
stages:
  - {name: rows, kind: hold_out, inputs: {data: pairs}}
  - {name: a, kind: reward_model, fold: 1, folds: 2, max_steps: 2, inputs: {backbone: model, data: rows}}
  - {name: b, kind: reward_model, fold: 2, folds: 2, max_steps: 2, inputs: {backbone: model, data: rows}}
  - {name: gaps, kind: score, on_weak: warn, inputs: {reward_models: [a, b], data: rows}}
  - {name: parts, kind: split, easy_fraction: 0.25, inputs: {scores: gaps, data: rows}}
  - {name: first, kind: dpo, max_steps: 2, inputs: {policy: model, reference: model, data: parts.easy}}
"""
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "mpo"]


def arguments(folder: Path, out: str) -> list[str]:
    given = {"--pairs": "pairs.jsonl", "--model": "base", "--out": out}
    return ["run", str(folder / "spec.yaml"), *(str(a) for n, p in given.items() for a in (n, folder / p))]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_policy(tmp_path / "base")
    write_lines(tmp_path / "pairs.jsonl", 60)
    (tmp_path / "spec.yaml").write_text(SPEC)
    return tmp_path


def losses(folder: Path) -> dict[str, list[float]]:
    return {
        name: [
            json.loads(line)["loss"] for line in (folder / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("a", "b", "first")
    }


def run_twice(folder: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, *TORCHRUN, *arguments(folder, "both")]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_plan_under_torchrun_is_the_plan_in_one_process(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(folder, "alone")) == 0
    said = capsys.readouterr().out
    both = run_twice(folder)
    assert both.returncode == 0, both.stderr
    started = [line for line in both.stdout.splitlines() if line.endswith("started")]
    assert started == [line for line in said.splitlines() if line.endswith("started")], "each stage once"
    for name, expected in losses(folder / "alone").items():
        assert losses(folder / "both")[name] == pytest.approx(expected, rel=1e-5)
    reports = [json.loads((folder / out / "report.json").read_text()) for out in ("both", "alone")]
    assert reports[0]["stages"].keys() == reports[1]["stages"].keys()
    assert reports[0]["split"]["easy"] == reports[1]["split"]["easy"]


def test_a_spec_that_cannot_be_run_ends_all(folder: Path) -> None:
    (folder / "spec.yaml").write_text(SPEC.replace("data: pairs", "data: none"))
    both = run_twice(folder)
    assert both.returncode != 0
    said = [line for line in both.stderr.splitlines() if line.startswith("mpo: ")]
    assert len(said) == 1, "the first process alone says it"
    assert "there is no such input" in said[0]


def test_a_process_knows_whether_it_was_launched_with_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert not is_launched()
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert is_launched()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(InvalidSpec, match="4 processes were started, 2 of them here"):
        is_launched()
