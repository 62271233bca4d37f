"""Evaluations outside of jobs in a real worker's child, on the test's Postgres and Valkey."""

from pathlib import Path
from typing import Any

import pytest

from app.evaluations.schemas import EvaluationCreate
from app.evaluations.service import cancel_evaluation, create_evaluation
from core.database import open_transaction
from core.tables import BaseModelRow, Evaluation
from tests.app.evaluations.performing import asked, held_out, register_models, write_models
from tests.workers.test_worker_process import children_of, run_row, wait_for, worker

pytestmark = pytest.mark.usefixtures("settings_env")

OWNER = "admin"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_models(tmp_path_factory.mktemp("models"))


def create(folder: Path, pairs: int = 12, **changes: Any) -> str:
    body = EvaluationCreate.model_validate(asked(held_out(folder, pairs), **changes))
    with open_transaction() as tx:
        return create_evaluation(tx, OWNER, body)


def row(evaluation_id: str) -> Evaluation:
    with open_transaction() as tx:
        return tx.session.get_one(Evaluation, evaluation_id)


def test_a_child_evaluates_and_its_report_is_the_evaluation_s(folders: Path, tmp_path: Path) -> None:
    register_models(folders)
    first = create(tmp_path, reward_model="scorer", samples=2)
    again = create(tmp_path, reward_model="judge", samples=2)
    with worker(tmp_path / "log", "gpu"):
        for made in (first, again):
            wait_for(lambda made=made: row(made).finished_at is not None, (tmp_path / "log").read_text())
    found = row(first)
    assert (found.status, found.error, found.warnings) == ("succeeded", None, [])
    assert found.report is not None
    assert found.report == run_row(found.run_id or "").summary
    assert (found.progress or {})["fraction"] == 1.0
    # The same models, prompts and seeds in a process of its own.
    other = row(again)
    assert other.report is not None
    assert [m["reward"] for m in other.report["models"]] == [m["reward"] for m in found.report["models"]]
    assert other.warnings == [
        "The judge is the reward model that was trained against: its verdict is no evidence."
    ]


def test_what_the_stage_refuses_fails_the_evaluation_with_its_reason(folders: Path, tmp_path: Path) -> None:
    register_models(folders)
    with open_transaction() as tx:
        # As if its folder had been changed since it was registered.
        tx.session.get_one(BaseModelRow, "judge").path = str(folders / "second")
    made = create(tmp_path)
    with worker(tmp_path / "log", "gpu"):
        wait_for(lambda: row(made).finished_at is not None, (tmp_path / "log").read_text())
    found = row(made)
    assert (found.status, found.report) == ("failed", None)
    assert found.error is not None
    assert "judge cannot be the judge" in found.error["message"]


def test_a_cancelled_evaluation_s_child_is_gone_and_the_slot_free(folders: Path, tmp_path: Path) -> None:
    register_models(folders)
    made = create(tmp_path, pairs=400, prompts=400, samples=64, max_new_tokens=32)
    with worker(tmp_path / "log", "gpu") as process:
        wait_for(lambda: row(made).progress is not None, (tmp_path / "log").read_text())
        assert row(made).status == "running"
        before = children_of(process.pid)
        with open_transaction() as tx:
            cancel_evaluation(tx, OWNER, made)
        wait_for(lambda: len(children_of(process.pid)) < len(before), "the child is still there")
        brief = create(tmp_path, prompts=1)
        wait_for(lambda: row(brief).finished_at is not None, (tmp_path / "log").read_text())
    assert (row(made).status, row(made).report, row(brief).status) == ("cancelled", None, "succeeded")
