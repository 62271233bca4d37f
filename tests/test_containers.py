import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.settings import Settings
from scripts.check_containers import compose_findings, dockerfile_findings

ROOT = Path(__file__).resolve().parents[1]
needs_parser = pytest.mark.skipif(
    importlib.util.find_spec("dockerfile") is None, reason="no wheel of BuildKit's parser for this machine"
)


@pytest.fixture
def compose() -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return copy.deepcopy(content)


def test_the_compose_file_has_no_findings() -> None:
    assert list(compose_findings((ROOT / "docker-compose.yml").read_text())) == []


@needs_parser
def test_the_dockerfile_has_no_findings() -> None:
    assert list(dockerfile_findings((ROOT / "Dockerfile").read_text())) == []


@needs_parser
@pytest.mark.parametrize(
    ("written", "instead", "finding"),
    [
        ("USER 10001:10001", "USER root", "the last USER is root: name another"),
        ("USER 10001:10001", "", "the last stage needs USER"),
        (
            "python:${PYTHON_VERSION}-slim AS runtime",
            "python AS runtime",
            "base image python needs a version",
        ),
        ("WORKDIR /build", "FETCH /build", "no instruction is called FETCH"),
        ("USER 10001:10001", "LABEL nothing", "does not parse"),
        ("COPY --from=build /venv /venv", "ADD https://example.org/x /", "COPY says what is copied"),
        ("ARG EXTRA=server", "ARG API_KEY", "a secret would stay in the image's history"),
    ],
)
def test_a_worse_dockerfile_is_found(written: str, instead: str, finding: str) -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert written in text

    assert any(finding in each for each in dockerfile_findings(text.replace(written, instead)))


@pytest.mark.parametrize(
    ("worsen", "finding"),
    [
        (lambda services: services["api"].pop("user"), "service api: needs a user other than root"),
        (lambda services: services["api"].pop("read_only"), "service api: needs read_only: true"),
        (lambda services: services["sampler"].pop("healthcheck"), "service sampler: needs a healthcheck"),
        (lambda services: services["postgres"].update(image="postgres"), "image needs a version"),
        (lambda services: services["api"].update(reed_only=True), "Extra inputs are not permitted"),
        (lambda services: services["api"].update(depends_on={"db": {"condition": "service_started"}}), "db"),
        (lambda services: services["api"].update(volumes=["stores:/store"]), "volume stores is not declared"),
        (
            lambda services: services["postgres"]["environment"].update(POSTGRES_PASSWORD="postgres"),
            "a default secret is everybody's secret",
        ),
        (lambda services: services["migrations"].update(restart="always"), "waits for the end of migrations"),
    ],
)
def test_a_worse_compose_file_is_found(
    compose: dict[str, Any], worsen: Callable[[dict[str, Any]], object], finding: str
) -> None:
    worsen(compose["services"])

    assert any(finding in each for each in compose_findings(yaml.safe_dump(compose)))


def test_only_the_one_shot_is_given_the_admin_key(compose: dict[str, Any]) -> None:
    services = compose["services"].items()
    given = [name for name, each in services if "MPO_ADMIN_KEY" in each.get("environment", {})]

    assert given == ["migrations"]


def test_estimates_are_made_for_the_gpu_that_the_worker_has(compose: dict[str, Any]) -> None:
    services = compose["services"]
    api, worker = services["api"]["environment"], services["worker-gpu"]["environment"]

    assert "deploy" in services["worker-gpu"]
    assert api["MPO_TRAINING_DEVICE"] == "cuda"
    assert api["MPO_TRAINING_MEMORY_BYTES"] == "${MPO_TRAINING_MEMORY_BYTES:-0}"
    assert api["MPO_RANKS"] == worker["MPO_RANKS"] == "${MPO_RANKS:-1}"
    assert api["MPO_SHARDED"] == worker["MPO_SHARDED"] == "${MPO_SHARDED:-0}"


def test_the_compose_file_names_no_setting_that_there_is_not(compose: dict[str, Any]) -> None:
    named = {name for each in compose["services"].values() for name in each.get("environment", {})}
    known = {f"MPO_{name.upper()}" for name in Settings.model_fields}

    assert {name for name in named if name.startswith("MPO_")} <= known


def test_what_the_image_needs_is_in_the_build_context() -> None:
    ignore = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    copied = {
        source.removeprefix("./")
        for line in (ROOT / "Dockerfile").read_text().splitlines()
        if line.startswith("COPY ") and "--from" not in line
        for source in line.split()[1:-1]
    }

    assert copied == let_in
