"""What README and quick start tell their reader to type, typed: against a running stack, on a few pairs."""

import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from examples import ablation
from mpo.job_spec import JobSpec
from mpo_client.cli.main import build_app
from tests.end_to_end.running_stack import QUICK_METHOD, ROOT, RunningStack, example_rows

README, QUICKSTART = (ROOT / "README.md").read_text(), (ROOT / "docs" / "quickstart.md").read_text()
PAIRS, PROMPTS = 40, 4
SECONDS = 400
STARTED = "mpo up --state .state"
TRAINED_ANEW = 4
"""By a job that only splits elsewhere: split, dpo, ppo, evaluate."""


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def quick(method: dict[str, Any]) -> dict[str, Any]:
    """The method's own stages with settings that take seconds."""
    settings = {name: QUICK_METHOD.get(name, value) for name, value in method.items()}
    return settings | {"type": method["type"]}


@pytest.fixture
def folder(stack: RunningStack, tmp_path: Path) -> Path:
    """The reader's: the project's examples with fewer pairs and steps, and the running stack's state."""
    shutil.copytree(ROOT / "examples", tmp_path / "examples", ignore=shutil.ignore_patterns("__pycache__"))
    rows = "".join(json.dumps(row) + "\n" for row in example_rows(PAIRS)).encode()
    (tmp_path / "examples" / "pairs.jsonl.gz").write_bytes(gzip.compress(rows, mtime=0))
    prompts = tmp_path / "examples" / "prompts.jsonl"
    prompts.write_text("".join(prompts.read_text().splitlines(keepends=True)[:PROMPTS]))
    for spec in (tmp_path / "examples").rglob("*.json"):
        content = json.loads(spec.read_text())
        if "method" in content:
            spec.write_text(json.dumps({**content, "method": quick(content["method"])}))
    (tmp_path / ".state").symlink_to(stack.state)
    activate = tmp_path / ".venv" / "bin" / "activate"
    activate.parent.mkdir(parents=True)
    activate.write_text(f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH\n")
    return tmp_path


def typed(folder: Path, text: str) -> str:
    """What the shell blocks print, typed one after the other; the stack has been started as they say."""
    lines = [line for block in blocks(text, "sh") for line in block.splitlines()]
    assert STARTED in lines
    script = "\n".join(line for line in lines if line != STARTED)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MPO_")}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=folder,
        env={**environment, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, (done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


def test_readme_s_shell_blocks_do_what_they_say(folder: Path) -> None:
    said = typed(folder, README)

    cached = re.findall(r"^ *0\.\d0 .* (\d+)/ *(\d+) ", said, re.MULTILINE)
    # The share in the middle is the first job's own.
    assert [int(all_) - int(some) for some, all_ in cached] == [TRAINED_ANEW, 0, TRAINED_ANEW]
    assert "mpo against dpo_only" in said
    assert "mpo against ppo_only" in said
    for made in ("gaps.png", "sweep.png"):
        assert (folder / made).read_bytes().startswith(b"\x89PNG")
    assert (folder / "ppo" / "model.safetensors").is_file()
    assert json.loads((folder / "out" / "report.json").read_text())["evaluation"]


def test_quickstart_s_shell_blocks_do_what_they_say(folder: Path) -> None:
    said = typed(folder, QUICKSTART)

    assert '"status":"ready"' in said
    assert '"object":"reward_gaps"' in said
    assert "succeeded\n" in said
    assert "paused\n" in said
    assert said.count("cancelled\n") == 2
    assert (folder / "reward-gaps.png").read_bytes().startswith(b"\x89PNG")


def test_readme_s_python_runs(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(folder)
    for block in blocks(README, "python"):
        exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out.strip()


def test_what_is_made_by_make_can_be_made() -> None:
    targets = [line.split()[1] for block in blocks(README, "make") for line in block.splitlines()]
    for target in [*targets, *re.findall(r"`make (\w+)`", README)]:
        subprocess.run(["make", "-n", target], cwd=ROOT, check=True, capture_output=True)
    assert targets == ["demo", "test"]


def test_every_other_command_that_is_shown_is_understood() -> None:
    """Those that need a network or half an hour: their words and options exist."""
    lines = re.findall(r"^    (mpo .*)$", README, re.MULTILINE)
    assert len(lines) >= 4
    for line in lines:
        command, words = get_command(build_app()), shlex.split(line, comments=True)[1:]
        while hasattr(command, "commands"):
            command, words = command.commands[words[0]], words[1:]
        command.make_context("mpo", words)


@pytest.mark.parametrize("name", list(ablation.FINAL))
def test_the_shipped_specs_are_what_the_demo_trains(name: str) -> None:
    spec = ablation.specs()[name]
    JobSpec.model_validate({**spec, "dataset": "ds_1"})
    demo = json.loads((ablation.HERE / "demo_job.json").read_text())["method"]
    for stage, settings in spec["method"].items():
        assert stage == "type" or settings == demo[stage]
