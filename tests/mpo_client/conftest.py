"""The client and the command against the real service, behind a real uvicorn."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from mpo_client.cli.main import build_app
from mpo_client.client import Client
from tests.app.jobs.factories import make_dataset, make_model
from tests.app.serving import served


class Mpo(Protocol):
    """Runs the command; gives its exit code, stdout and stderr."""

    def __call__(self, *args: str, input: str | None = None) -> Any: ...


@pytest.fixture
def url(client: TestClient) -> Iterator[str]:
    with served(client.app) as url:  # type: ignore[arg-type]
        yield url


@pytest.fixture
def sdk(url: str, admin_key: str) -> Iterator[Client]:
    with Client(url, admin_key) as client:
        yield client


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to call the command in; nothing says which service."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    for name in ("MPO_URL", "MPO_API_KEY", "MPO_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    return folder


@pytest.fixture
def mpo(elsewhere: Path) -> Mpo:
    """The command, which knows no service."""

    def run(*args: str, input: str | None = None) -> Any:
        return CliRunner().invoke(build_app(), list(args), input=input, prog_name="mpo")

    return run


@pytest.fixture
def at_service(url: str, admin_key: str, mpo: Mpo, monkeypatch: pytest.MonkeyPatch) -> Mpo:
    """The command, told of the service by its environment."""
    monkeypatch.setenv("MPO_URL", url)
    monkeypatch.setenv("MPO_API_KEY", admin_key)
    return mpo


@pytest.fixture
def spec(client: TestClient, tmp_path: Path) -> dict[str, Any]:
    """A job that the service takes."""
    return {
        "name": "first",
        "model": make_model(),
        "dataset": make_dataset(tmp_path),
        "method": {"type": "mpo", "split": {"threshold": 1.0}},
        "labels": {"team": "a"},
    }
