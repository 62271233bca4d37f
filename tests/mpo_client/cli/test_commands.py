"""The command against the real service: what people read, and what programs read."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from core.database import open_transaction
from core.settings import settings
from core.tables import Metric
from mpo_client.cli.main import build_app
from tests.app.artifacts.factories import score, split
from tests.app.jobs.factories import make_dataset, work_until
from tests.app.models.test_routes import model_folder, trained
from tests.factories import json_lines, pairs, validate
from tests.mpo_client.conftest import Mpo

GAPS = [-2.0, -0.5, 0.5, 1.5, 2.5, 3.0, 0.25, 1.0]


@pytest.fixture
def submitted(at_service: Mpo, elsewhere: Path, spec: dict[str, Any]) -> str:
    """The id of a job, printed by the command."""
    (elsewhere / "spec.yaml").write_text(yaml.safe_dump(spec))
    found = at_service("jobs", "submit", "spec.yaml")
    assert found.exit_code == 0, found.output
    assert f"mpo jobs watch {found.stdout.strip()}" in found.stderr
    return str(found.stdout.strip())


def as_json(found: Any) -> Any:
    """The one document on stdout."""
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def said(found: Any) -> str:
    assert found.exit_code == 0, found.output
    return str(found.stdout)


def test_an_upload_prints_the_id_alone(at_service: Mpo, elsewhere: Path, tmp_path: Path) -> None:
    (elsewhere / "pairs.jsonl").write_bytes(json_lines(pairs(30)))
    found = at_service("datasets", "upload", "pairs.jsonl", "--name", "mine", "--no-wait")
    dataset = found.stdout.strip()
    assert dataset.startswith("ds_")
    validate(dataset, tmp_path)

    assert dataset in said(at_service("datasets", "list"))
    assert as_json(at_service("datasets", "list", "--json"))["data"][0]["rows"] == 30
    assert "ready" in said(at_service("datasets", "show", dataset))
    assert "duplicates" in said(at_service("datasets", "report", dataset))
    lines = said(at_service("datasets", "rows", dataset, "--limit", "2")).splitlines()
    assert [json.loads(line)["id"] for line in lines] == ["0", "1"]
    assert "deleted" in at_service("datasets", "delete", dataset).stderr


def test_a_spec_is_changed_by_options(at_service: Mpo, elsewhere: Path, spec: dict[str, Any]) -> None:
    spec.pop("dataset")
    changes = ["--set", "method.split.threshold=0.25", "--set", "method.sft=null", "--set", "name=other"]
    dataset = make_dataset(elsewhere)
    found = as_json(
        at_service(
            *("jobs", "submit", "-", "--dataset", dataset, "--label", "by=me", "--json"),
            *changes,
            input=json.dumps(spec),
        )
    )
    assert (found["name"], found["labels"]) == ("other", {"team": "a", "by": "me"})
    assert found["method"]["split"]["threshold"] == 0.25
    assert found["method"]["sft"] is None


def test_a_dry_run_creates_nothing(at_service: Mpo, elsewhere: Path, spec: dict[str, Any]) -> None:
    (elsewhere / "spec.json").write_text(json.dumps(spec))
    found = at_service("jobs", "submit", "spec.json", "--dry-run")
    assert "reward_model_fold_1" in said(found)
    assert "nothing was created" in found.stderr
    assert as_json(at_service("jobs", "list", "--json"))["data"] == []


def test_a_job_is_listed_shown_and_steered(at_service: Mpo, submitted: str) -> None:
    assert submitted in said(at_service("jobs", "list", "--status", "queued", "--label", "team=a"))
    assert as_json(at_service("jobs", "list", "--label", "team=b", "--json"))["data"] == []
    shown = said(at_service("jobs", "show", submitted))
    assert "reward_model" in shown
    assert as_json(at_service("jobs", "show", submitted, "--json"))["id"] == submitted
    assert said(at_service("jobs", "pause", submitted)) == f"{submitted} paused\n"
    assert at_service("jobs", "resume", submitted, "--threshold", "0.5").exit_code == 0
    assert said(at_service("jobs", "cancel", submitted)) == f"{submitted} cancelled\n"
    assert "job.cancelled" in said(at_service("jobs", "events", submitted))
    streamed = said(at_service("jobs", "events", submitted, "--follow", "--json")).splitlines()
    assert json.loads(streamed[-1])["type"] == "job.cancelled"
    assert at_service("jobs", "watch", submitted).exit_code == 4
    assert at_service("jobs", "delete", submitted).exit_code == 0


def test_gaps_at_80_columns(at_service: Mpo, submitted: str, tmp_path: Path, elsewhere: Path) -> None:
    score(GAPS)
    split(tmp_path)
    shown = said(at_service("gaps", "histogram", submitted, "--bins", "5", "--save", "gaps.png"))
    assert "── threshold 1.000" in shown
    assert "8: 4 easy, 4 difficult, 0 dropped" in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert (elsewhere / "gaps.png").read_bytes().startswith(b"\x89PNG")
    assert sum(as_json(at_service("gaps", "histogram", submitted, "--json"))["counts"]) == 8
    assert "threshold 2" in said(at_service("gaps", "preview", submitted, "--threshold", "2"))
    found = as_json(at_service("gaps", "pairs", submitted, "--order", "-gap", "--limit", "1", "--json"))
    assert found["data"][0]["gap"] == 3.0
    assert "rejected" in said(at_service("gaps", "pairs", submitted, "--part", "easy"))


def test_metrics_are_drawn(at_service: Mpo, submitted: str) -> None:
    sft = work_until("sft")
    assert sft is not None
    with open_transaction() as tx:
        for step in range(1, 100):
            tx.session.add(Metric(run_id=sft.id, step=step, values={"loss": 1.0 / step}))
    assert "▁" in said(at_service("jobs", "metrics", submitted))
    chart = said(at_service("jobs", "metrics", submitted, "--name", "loss"))
    assert "steps 1 to 99" in chart
    assert max(map(len, chart.splitlines())) <= 80
    assert as_json(at_service("jobs", "metrics", submitted, "--json"))["data"][0]["name"] == "loss"
    assert "sft" in said(at_service("runs", "show", sft.id))
    assert at_service("runs", "log", sft.id).exit_code == 0


def test_models_are_added_downloaded_and_deleted(
    at_service: Mpo, elsewhere: Path, store: Path, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_MODEL_ROOTS", str(elsewhere))
    settings.cache_clear()
    assert said(at_service("models", "register", str(model_folder(elsewhere / "base")))) == "base\n"
    name, _ = trained(store)
    assert name in said(at_service("models", "list"))
    assert "model.safetensors" in said(at_service("models", "show", name))
    assert "1 files, 10 B, in there" in at_service("models", "download", name, "there").stderr
    assert (elsewhere / "there/model.safetensors").exists()
    assert at_service("models", "delete", "base").exit_code == 0


def test_a_key_is_printed_alone_and_can_be_deleted(at_service: Mpo) -> None:
    made = at_service("keys", "create", "ci", "--scope", "read", "--days", "1")
    key = said(made).strip()
    assert key.startswith("mpo_sk_")
    assert at_service("jobs", "list", "--key", key).exit_code == 0
    assert at_service("keys", "delete", made.stderr.split()[0]).exit_code == 0
    assert at_service("jobs", "list", "--key", key).exit_code == 1


def test_status_names_what_is_missing(at_service: Mpo) -> None:
    found = at_service("status")
    assert found.exit_code == 1  # no worker runs
    assert "postgres" in found.stdout


def test_every_command_has_help_and_a_json_form() -> None:
    root = get_command(build_app())
    for group in root.commands.values():  # type: ignore[attr-defined]
        for command in getattr(group, "commands", {}).values():
            assert command.help, command.name
            assert "json" in {option.name for option in command.params}, f"{group.name} {command.name}"
