"""How many statements a submission sends: what it costs is counted here and measured by `make load`."""

from functools import cache
from typing import Any

import pytest
from fastapi.testclient import TestClient

from app import authentication
from app.jobs import creation, fitting, room, submissions
from app.jobs.blueprints import Kept
from app.jobs.places import FARTHEST_COUNTED
from core.database import open_transaction
from core.queue import enqueue
from core.settings import settings
from core.work_items import NewRun
from tests.app.conftest import CreateJob
from tests.app.jobs.factories import OWNER, work_until
from tests.app.statements import counted

COLD, CACHED = 6, 7
"""Beside BEGIN and COMMIT, whatever the number of stages."""


@pytest.fixture(autouse=True)
def nothing_grows_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read once a second is not read again, however slow the machine."""
    monkeypatch.setattr(authentication, "TRUSTED_SECONDS", 3600.0)
    monkeypatch.setattr(room, "COUNT_SECONDS", 3600.0)
    monkeypatch.setattr(room, "rooms", cache(room.Rooms))
    monkeypatch.setattr(creation, "rooms", room.rooms)
    monkeypatch.setattr(submissions, "rooms", room.rooms)


def test_a_new_job_takes_as_many_statements_as_are_worth_it(
    client: TestClient, create_job: CreateJob
) -> None:
    create_job()  # counts the open jobs, reads the key
    with counted() as sent:
        create_job(seed=1)
    assert len(sent) <= COLD, sent


def test_a_limit_of_memory_costs_jobs_of_a_known_plan_no_statement(
    client: TestClient, create_job: CreateJob, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MPO_TRAINING_MEMORY_BYTES", str(2**40))
    settings.cache_clear()
    counts: list[Any] = []
    monkeypatch.setattr(fitting, "_excesses", Kept())
    monkeypatch.setattr(fitting, "stage_costs", lambda *of: counts.append(of) or {})
    test_a_new_job_takes_as_many_statements_as_are_worth_it(client, create_job)
    assert len(counts) == 1, "once for all jobs of a plan"


def test_a_job_that_is_cached_whole_takes_no_more(client: TestClient, create_job: CreateJob) -> None:
    create_job()
    work_until()
    with counted() as sent:
        assert create_job()["status"] == "succeeded"
    assert len(sent) <= CACHED, sent


def test_a_place_far_back_in_the_queue_is_not_counted(
    client: TestClient, spec: dict[str, Any], create_job: CreateJob
) -> None:
    first = create_job()
    with open_transaction() as tx:
        for number in range(FARTHEST_COUNTED):
            enqueue(tx, NewRun("hold_out", "cpu", OWNER, str(number), {}))
    last = create_job(seed=1)
    assert (first["queue_position"], last["queue_position"]) == (1, None)
    assert client.get(f"/v1/jobs/{first['id']}").json()["queue_position"] == 1
