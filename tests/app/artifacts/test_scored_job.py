"""Jobs whose pairs are scored, and the rows that they came from are gone."""

from fastapi.testclient import TestClient

from core.storage import storage
from tests.app.artifacts.factories import scores_file
from tests.app.jobs.factories import claim, publish

GAPS = [0.5] * 4 + [1.5] * 4


def scored(client: TestClient, model: str, dataset: str) -> str:
    """Path of a job that scores a dataset directly; runs of the slot cpu are left queued."""
    nodes = [
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": model, "data": dataset}},
        {
            "name": "gaps",
            "kind": "score",
            "scheme": "in_sample",
            "inputs": {"reward_models": ["rm"], "data": dataset},
        },
    ]
    response = client.post("/v1/jobs", json={"stages": nodes})
    assert response.status_code == 202, response.text
    while (claimed := claim("gpu")) is not None:
        publish(claimed, {"scores": scores_file(GAPS)} if claimed.kind == "score" else {})
    return f"/v1/jobs/{response.json()['id']}"


def test_pairs_of_a_deleted_dataset_are_told_to_be_gone(client: TestClient, model: str, dataset: str) -> None:
    path = scored(client, model, dataset)
    assert len(client.get(f"{path}/pairs").json()["data"]) == 8
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    storage().delete(f"datasets/{dataset}")
    gone = client.get(f"{path}/pairs")
    assert (gone.status_code, gone.json()["code"]) == (409, "dataset_deleted")
    assert gone.headers["x-should-retry"] == "false"
    assert client.get(f"{path}/reward-gaps").json()["easy"] == 4
