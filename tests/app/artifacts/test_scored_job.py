"""Jobs whose pairs are scored while the rows that they came from are not made yet, or gone."""

from typing import Any

from fastapi.testclient import TestClient

from core.storage import storage
from tests.app.artifacts.factories import scores_file
from tests.app.jobs.factories import claim, publish

GAPS = [0.5] * 4 + [1.5] * 4


def scored(client: TestClient, model: str, dataset: str, *more: dict[str, Any]) -> str:
    """Path of a job that scores a dataset directly; runs of the slot cpu are left queued."""
    nodes = [
        {"name": "rm", "kind": "reward_model", "inputs": {"backbone": model, "data": dataset}},
        {
            "name": "gaps",
            "kind": "score",
            "scheme": "in_sample",
            "inputs": {"reward_models": ["rm"], "data": dataset},
        },
        *more,
    ]
    response = client.post("/v1/jobs", json={"stages": nodes})
    assert response.status_code == 202, response.text
    while (claimed := claim("gpu")) is not None:
        publish(claimed, {"scores": scores_file(GAPS)} if claimed.kind == "score" else {})
    return f"/v1/jobs/{response.json()['id']}"


def test_gaps_are_shown_before_the_rows_of_the_split_are_made(
    client: TestClient, model: str, dataset: str
) -> None:
    rows = {"name": "rows", "kind": "hold_out", "fraction": 0, "inputs": {"data": dataset}}
    split = {
        "name": "parts",
        "kind": "split",
        "threshold": 1.0,
        "inputs": {"scores": "gaps", "data": "rows"},
    }
    path = scored(client, model, dataset, rows, split)
    assert client.get(f"{path}/reward-gaps").json()["easy"] == 4
    assert client.get(f"{path}/reward-gaps/preview?threshold=0.25").json()["easy"]["pairs"] == 8
    waiting = client.get(f"{path}/pairs")
    assert (waiting.status_code, waiting.json()["code"]) == (409, "not_scored_yet")
    assert waiting.headers["x-should-retry"] == "true"


def test_pairs_of_a_deleted_dataset_are_told_to_be_gone(client: TestClient, model: str, dataset: str) -> None:
    path = scored(client, model, dataset)
    assert len(client.get(f"{path}/pairs").json()["data"]) == 8
    assert client.delete(f"/v1/datasets/{dataset}").status_code == 200
    storage().delete(f"datasets/{dataset}")
    gone = client.get(f"{path}/pairs")
    assert (gone.status_code, gone.json()["code"]) == (409, "dataset_deleted")
    assert gone.headers["x-should-retry"] == "false"
    assert client.get(f"{path}/reward-gaps").json()["easy"] == 4
