"""What every test of jobs starts from: a base model and a ready dataset."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from tests.app.jobs.factories import make_dataset, make_model

CreateJob = Callable[..., dict[str, Any]]


@pytest.fixture
def model(client: TestClient) -> str:
    return make_model()


@pytest.fixture
def dataset(client: TestClient, tmp_path: Path) -> str:
    return make_dataset(tmp_path)


@pytest.fixture
def spec(model: str, dataset: str) -> dict[str, Any]:
    return {"name": "first", "model": model, "dataset": dataset, "method": {"type": "mpo"}}


@pytest.fixture
def create_job(client: TestClient, spec: dict[str, Any]) -> CreateJob:
    def create(**changes: Any) -> dict[str, Any]:
        response = client.post("/v1/jobs", json=spec | changes)
        assert response.status_code == 202, response.text
        job: dict[str, Any] = response.json()
        return job

    return create
