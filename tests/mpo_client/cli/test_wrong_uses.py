"""Wrong uses of the command: one line that says what to do, a code that says what kind, no traceback."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.factories import validate
from tests.mpo_client.conftest import Mpo

ROOT = Path(__file__).resolve().parents[3]


def refused(found: Any, code: int, *parts: str) -> None:
    """Exactly one line on stderr, with these parts; nothing on stdout."""
    assert found.exit_code == code, found.output
    assert found.stdout == ""
    line = found.stderr.removesuffix("\n")
    assert line.startswith("error: ")
    assert "\n" not in line
    assert "Traceback" not in line
    for part in parts:
        assert part in line


@pytest.fixture
def spec_file(elsewhere: Path, spec: dict[str, Any]) -> str:
    (elsewhere / "spec.json").write_text(json.dumps(spec))
    return "spec.json"


def test_no_server(mpo: Mpo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mpo_client.retries._FIRST_SECONDS", 0.0)
    found = mpo("jobs", "list", "--url", "http://127.0.0.1:9", "--key", "mpo_sk_x")
    refused(found, 3, "http://127.0.0.1:9", "mpo up")


def test_no_key(mpo: Mpo) -> None:
    refused(mpo("jobs", "list"), 2, "no API key", "--key-file", "MPO_API_KEY")


def test_a_wrong_key(at_service: Mpo) -> None:
    refused(
        at_service("jobs", "list", "--key", "mpo_sk_wrong"), 1, "unknown, deleted or expired", "--key-file"
    )


def test_a_key_file_that_is_not_there(at_service: Mpo) -> None:
    refused(at_service("jobs", "list", "--key-file", "none"), 2, "none", "No such file")


def test_a_url_that_is_none(mpo: Mpo) -> None:
    refused(mpo("jobs", "list", "--url", "localhost:8000", "--key", "mpo_sk_x"), 2, "http://127.0.0.1:8000")


def test_a_state_folder_where_nothing_runs(mpo: Mpo) -> None:
    refused(mpo("jobs", "list", "--state", "nowhere"), 2, "mpo up --state nowhere")


def test_a_file_that_is_not_there(at_service: Mpo) -> None:
    refused(at_service("datasets", "upload", "none.jsonl"), 2, "none.jsonl", "does not exist")


def test_a_file_of_no_pairs(at_service: Mpo, elsewhere: Path, client: Any, tmp_path: Path) -> None:
    (elsewhere / "bad.jsonl").write_text('{"prompt": 1}\n')
    made = at_service("datasets", "upload", "bad.jsonl", "--no-wait")
    validate(made.stdout.strip(), tmp_path)

    shown = at_service("datasets", "report", made.stdout.strip())
    assert shown.exit_code == 0
    assert "refused because" in shown.stdout
    refused(at_service("datasets", "rows", made.stdout.strip()), 1)


def test_an_unknown_dataset(at_service: Mpo) -> None:
    refused(at_service("datasets", "show", "ds_none"), 1, "ds_none", "mpo datasets list")


def test_an_unknown_job(at_service: Mpo) -> None:
    for command in ("show", "watch", "cancel", "events", "metrics"):
        refused(at_service("jobs", command, "job_none"), 1, "job_none", "mpo jobs list")


def test_an_unknown_model(at_service: Mpo, spec_file: str) -> None:
    refused(at_service("models", "show", "none"), 1, "none", "mpo models list")
    refused(at_service("jobs", "submit", spec_file, "--model", "none"), 1, "mpo models list")
    refused(at_service("jobs", "submit", spec_file, "--dataset", "ds_1"), 1, "mpo datasets list")


def test_a_spec_that_is_neither_yaml_nor_json(at_service: Mpo, elsewhere: Path) -> None:
    (elsewhere / "spec.yaml").write_text("method: {type: mpo\nname: [")
    refused(at_service("jobs", "submit", "spec.yaml"), 2, "spec.yaml", "line 2")
    refused(at_service("jobs", "submit", "-", input="just words"), 2, "stdin", "job spec")
    refused(at_service("jobs", "submit", "none.yaml"), 2, "none.yaml", "No such file")


def test_a_spec_with_a_field_that_is_none(at_service: Mpo, spec_file: str) -> None:
    found = at_service("jobs", "submit", spec_file, "--set", "method.dpo.betta=0.2")
    refused(found, 1, "method.dpo.betta")


@pytest.mark.parametrize("text", ["threshold", "=1", "method..split=1", "name.split=1"])
def test_a_bad_set(at_service: Mpo, spec_file: str, text: str) -> None:
    refused(at_service("jobs", "submit", spec_file, "--set", text), 2, f"--set {text}")


def test_a_bad_threshold(at_service: Mpo, spec_file: str) -> None:
    found = at_service("jobs", "submit", spec_file, "--set", "method.split.threshold=high")
    refused(found, 1, "method.split.threshold")
    refused(at_service("gaps", "preview", "job_1", "--threshold", "high"), 2, "--threshold", "number")


def test_an_unknown_command(mpo: Mpo) -> None:
    refused(mpo("job", "list"), 2, "Did you mean", "jobs")
    refused(mpo("jobs", "submitt"), 2, "Did you mean", "submit")
    refused(mpo("nothing-like-it"), 2, "mpo --help")


def test_an_unknown_option(mpo: Mpo) -> None:
    refused(mpo("jobs", "list", "--limt", "3"), 2, "Did you mean --limit?")


def test_a_value_that_is_none(mpo: Mpo) -> None:
    refused(mpo("jobs", "list", "--status", "done"), 2, "--status", "succeeded")
    refused(mpo("gaps", "pairs", "job_1", "--part", "hard"), 2, "difficult")


def test_a_missing_argument(mpo: Mpo) -> None:
    refused(mpo("jobs", "show"), 2, "JOB", "mpo jobs show --help")


def test_nothing_to_ask(at_service: Mpo) -> None:
    refused(at_service("sample", "tiny"), 2, "--prompts")
    refused(at_service("compare", "a", "b"), 2, "--dataset")


def test_a_configuration_with_an_unknown_setting(mpo: Mpo, elsewhere: Path) -> None:
    (elsewhere / "mpo.toml").write_text('adress = "http://x"\n')
    refused(mpo("jobs", "list", "--config", "mpo.toml"), 2, "adress", "url")


def test_the_installed_program_too_ends_without_a_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mpo_client.cli", "jobs", "list", "--url", "http://127.0.0.1:9"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "MPO_API_KEY": "mpo_sk_x", "HOME": str(tmp_path)}
    found = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
    )
    assert found.returncode == 3
    assert found.stderr.count("\n") == 1
    assert found.stdout == ""
