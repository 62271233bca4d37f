"""A real Postgres and a real Valkey once a session; a fresh clone of the migrated database a test."""

import functools
import itertools
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import pytest
from alembic import command
from fastapi.testclient import TestClient
from sqlalchemy.engine import make_url

from app.authentication import forget_callers
from app.jobs.places import forget_places
from core import database, doorbell, storage
from core.api_keys import new_secret
from core.bootstrap import ensure_admin_key
from core.migrate import alembic_config
from core.settings import settings
from embedded import postgres, valkey
from tests.object_store import fresh_bucket, s3_environment, s3_server

START_SECONDS = 60
TEMPLATE = "mpo_template"
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def servers() -> Iterator[Path]:
    """The folder of the sockets on which both servers listen. Short: a socket's path may have 107 bytes."""
    folder = Path(tempfile.mkdtemp(prefix="mpo-"))
    data, log = folder / "data", folder / "log"
    data.mkdir()
    running: list[subprocess.Popen[bytes]] = []
    try:
        initdb = postgres.initdb_program(data, log, {}).command
        subprocess.run((*initdb, "--no-sync"), check=True, cwd=_code(), capture_output=True)
        # What a power cut could cost matters to no test.
        server = (*postgres.server_program(data, folder, log, {}).command, "-c", "fsync=off")
        for program in (server, valkey.server_program(folder, folder, log, {}).command):
            with log.open("ab") as output:
                running.append(subprocess.Popen(program, cwd=_code(), stdout=output, stderr=output))
        _wait_for(lambda: postgres.is_ready(folder) and valkey.is_ready(folder), log)
        yield folder
    finally:
        for process in running:
            process.send_signal(2)
        for process in running:
            process.wait(START_SECONDS)
        shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_url(servers: Path) -> str:
    """The session's Valkey; `settings_env` empties it before a test."""
    return valkey.url(servers)


@pytest.fixture(scope="session")
def template_url(servers: Path) -> str:
    """A migrated database that tests clone."""
    _administer(servers, f"CREATE DATABASE {TEMPLATE}")
    url = make_url(postgres.url(servers)).set(database=TEMPLATE).render_as_string(hide_password=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MPO_DATABASE_URL", url)
        patch.setenv("MPO_REDIS_URL", valkey.url(servers))
        patch.setenv("MPO_STORE_URL", "memory://")
        settings.cache_clear()
        command.upgrade(alembic_config(), "head")
        settings.cache_clear()
    return url


@pytest.fixture
def database_url(servers: Path, template_url: str) -> Iterator[str]:
    """A migrated, empty database of the test's own."""
    name = f"mpo_test_{next(_numbers)}"
    _administer(servers, f"CREATE DATABASE {name} TEMPLATE {TEMPLATE}")
    yield make_url(template_url).set(database=name).render_as_string(hide_password=False)
    _administer(servers, f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """The folder of the test's artifact store."""
    folder = tmp_path / "store"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    """The session's S3 server, started by the first test that asks for it."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """URL of an empty bucket of the test's own, which this process and those that it starts can reach."""
    for name, value in s3_environment(s3_url).items():
        monkeypatch.setenv(name, value)
    return fresh_bucket()


@pytest.fixture
def admin_key() -> str:
    """The admin key's secret; `client` makes it known to the database."""
    return new_secret()


@pytest.fixture
def settings_env(
    database_url: str, redis_url: str, store: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a deployment: this process, and those that it starts, use the test's servers."""
    import redis

    with redis.Redis.from_url(redis_url) as server:
        server.flushall()
    monkeypatch.setenv("MPO_DATABASE_URL", database_url)
    monkeypatch.setenv("MPO_REDIS_URL", redis_url)
    monkeypatch.setenv("MPO_STORE_URL", f"file://{store}")
    # Else the machine's, which other programs and sessions of tests use too.
    monkeypatch.setenv("MPO_SCRATCH", str(store.parent / "scratch"))
    # Other tests compute beside the workers that a test starts: with the default they would be starved.
    monkeypatch.setenv("MPO_WORKER_NICENESS", "0")
    monkeypatch.delenv("MPO_MODELS", raising=False)
    _forget()
    yield monkeypatch
    _forget()


@pytest.fixture
def client(settings_env: pytest.MonkeyPatch, admin_key: str) -> Iterator[TestClient]:
    """The application, called with the admin key."""
    from app.main import create_app

    with database.open_transaction() as tx:
        ensure_admin_key(tx, admin_key)
    headers = {"Authorization": f"Bearer {admin_key}"}
    with TestClient(create_app(), headers=headers, raise_server_exceptions=False) as client:
        client.event_hooks["response"].append(refuse_undeclared)
        yield client


def refuse_undeclared(response: Any) -> None:
    """A hook on every answer of every test: a status that the OpenAPI document does not declare fails it."""
    path, method = response.request.url.path, response.request.method
    found = [r for r in _declared().routes if method in r.methods and r.path_regex.match(path)]
    if found and response.status_code < 500 and found[0].include_in_schema:
        operation = _declared().paths[found[0].path.replace(":path}", "}")][method.lower()]
        where = f"{method} {found[0].path} answers with {response.status_code}, which it does not declare"
        assert str(response.status_code) in operation["responses"], where


@dataclass(frozen=True)
class Declared:
    """The API's routes, and OpenAPI's text of its paths."""

    routes: list[Any]
    paths: dict[str, Any]


@functools.cache
def _declared() -> Declared:
    # Once a session: every application has the same document, and it takes seconds to make.
    from app.main import ROUTERS, app

    return Declared([route for router in ROUTERS for route in router.routes], app.openapi()["paths"])


def _forget() -> None:
    """Make the next use of settings, database, store and doorbell read the environment anew."""
    database.dispose()
    settings.cache_clear()
    storage.storage.cache_clear()
    doorbell._sender.cache_clear()
    forget_callers()
    forget_places()


def _code() -> Path:
    return Path(__file__).resolve().parents[1]


def _administer(sockets: Path, statement: str) -> None:
    host = str(postgres.socket_folder(sockets))
    with psycopg.connect(host=host, user="postgres", dbname="postgres", autocommit=True) as connection:
        connection.execute(statement.encode())


def _wait_for(ready: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not ready():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)
