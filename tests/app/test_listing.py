"""Pages of jobs made of what is at hand: they tell what single answers tell, and read only changes."""

import pytest
from fastapi.testclient import TestClient

from tests.app.conftest import CreateJob
from tests.app.statements import counted
from tests.app.test_marks import CHANGES, claim, held

IDS_MARKS_AND_PLACES = 3


@pytest.mark.parametrize("what", CHANGES)
def test_a_page_tells_each_change_as_the_single_answers_do(
    client: TestClient, create_job: CreateJob, what: str
) -> None:
    jobs = [create_job()["id"], create_job(seed=1)["id"]]
    held[:] = [claim()]
    before = client.get("/v1/jobs?order=asc").json()["data"]
    CHANGES[what]()
    after = client.get("/v1/jobs?order=asc").json()["data"]
    assert after != before
    assert after == [client.get(f"/v1/jobs/{job}").json() for job in jobs]


def test_what_has_not_changed_is_not_read_again(client: TestClient, create_job: CreateJob) -> None:
    for seed in range(3):
        create_job(seed=seed)
    first = client.get("/v1/jobs")
    with counted() as sent:
        assert client.get("/v1/jobs").content == first.content
    assert len(sent) == IDS_MARKS_AND_PLACES, sent


def test_a_deleted_job_leaves_its_page(client: TestClient, create_job: CreateJob) -> None:
    kept, gone = create_job()["id"], create_job(seed=1)["id"]
    client.get("/v1/jobs")
    client.post(f"/v1/jobs/{gone}/cancel")
    client.delete(f"/v1/jobs/{gone}").raise_for_status()
    assert [job["id"] for job in client.get("/v1/jobs").json()["data"]] == [kept]
