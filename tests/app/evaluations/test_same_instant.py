"""An evaluation and the deletion of what it names, at the same instant: one of them is refused."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from app.evaluations.schemas import EvaluationCreate
from app.evaluations.service import create_evaluation
from app.jobs.changes import InUse, delete_job
from app.models.service import ModelInUse, delete_base_model, delete_trained_model
from core.database import Transaction, open_transaction
from core.errors import Unprocessable
from tests.app.jobs.factories import OWNER, make_model, work_until

WAIT_SECONDS = 20


@pytest.fixture
def trained(client: TestClient, model: str, dataset: str) -> str:
    stage = {"name": "one", "kind": "sft", "inputs": {"policy": model, "data": dataset}}
    job = client.post("/v1/jobs", json={"stages": [stage]}).json()
    work_until()
    make_model("judge", kind="reward_model")
    return f"{job['id']}:one"


def deletions(model: str, trained: str) -> dict[str, tuple[str, Callable[[Transaction], None]]]:
    """By what is deleted: the model that is evaluated, and the deletion."""
    job_id = trained.partition(":")[0]
    return {
        "base model": (model, lambda tx: delete_base_model(tx, model)),
        "trained model": (trained, lambda tx: delete_trained_model(tx, OWNER, trained)),
        "job": (trained, lambda tx: delete_job(tx, OWNER, job_id)),
    }


def evaluate(tx: Transaction, model: str, dataset: str) -> str:
    body = EvaluationCreate.model_validate({"models": [model], "judge": "judge", "dataset": dataset})
    return create_evaluation(tx, OWNER, body)


def until_somebody_waits(tx: Transaction) -> None:
    of_ours = "wait_event_type = 'Lock' AND datname = current_database()"
    waiting = text(f"SELECT count(*) FROM pg_stat_activity WHERE {of_ours}")
    for _ in range(WAIT_SECONDS * 1000):
        if tx.session.scalar(waiting):
            return
        tx.session.execute(text("SELECT pg_sleep(0.001)"))
        tx.session.execute(text("SELECT pg_stat_clear_snapshot()"))
    pytest.fail("nobody waits for the other")


def in_a_transaction(work: Callable[[Transaction], object]) -> None:
    with open_transaction() as tx:
        work(tx)


@pytest.mark.parametrize("what", ["base model", "trained model", "job"])
def test_a_deletion_waits_for_an_evaluation_that_is_being_made_and_is_refused(
    trained: str, model: str, dataset: str, what: str
) -> None:
    name, delete = deletions(model, trained)[what]
    with ThreadPoolExecutor(1) as pool:
        with open_transaction() as tx:
            made = evaluate(tx, name, dataset)
            deletion = pool.submit(in_a_transaction, delete)
            until_somebody_waits(tx)
        with pytest.raises((ModelInUse, InUse), match=made):
            deletion.result(WAIT_SECONDS)


@pytest.mark.parametrize("what", ["base model", "trained model", "job"])
def test_an_evaluation_waits_for_a_deletion_and_finds_nothing(
    trained: str, model: str, dataset: str, what: str
) -> None:
    name, delete = deletions(model, trained)[what]
    with ThreadPoolExecutor(1) as pool:
        with open_transaction() as tx:
            delete(tx)
            tx.session.flush()
            making = pool.submit(in_a_transaction, lambda tx: evaluate(tx, name, dataset))
            until_somebody_waits(tx)
        with pytest.raises(Unprocessable):
            making.result(WAIT_SECONDS)
