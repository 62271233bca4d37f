"""Whole stacks as a user starts them: Postgres, Valkey, API, workers and sampler, each a real process."""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from embedded.services import inherited_environment
from embedded.shipped import examples_folder
from embedded.state import Recorded, StateFolder
from mpo_client.client import Client
from mpo_client.errors import NotValid
from tests.embedded.waiting import wait_for

PROGRAMS = {"postgres", "valkey", "api", "worker-cpu", "worker-gpu", "sampler"}
READY_SECONDS = 60
SMALL_MACHINE = """
from embedded import services
from embedded.__main__ import app

services.machine_memory = lambda: 530 * 2**20
app()
"""
"""`mpo up` where there is little more memory than the process and the weights of `tiny` need."""


class Up:
    """A running `mpo up`. program: of Python, which takes its arguments."""

    def __init__(self, folder: Path, port: int = 0, program: Sequence[str] = ("-m", "embedded")) -> None:
        self.state = StateFolder(folder)
        self.process = subprocess.Popen(
            [sys.executable, *program, "up", "--state", str(folder), "--port", str(port)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=inherited_environment(),
        )
        self.url = ""

    def wait_until_ready(self) -> "Up":
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line.startswith("ready http://127.0.0.1:"), self.process.communicate()[1]
        self.url = line.split()[1]
        return self

    def get(self, path: str) -> object:
        request = urllib.request.Request(
            self.url + path, headers={"Authorization": f"Bearer {self.state.api_key()}"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)

    def running(self) -> list[Recorded]:
        """All programs, once the last of them is started."""
        wait_for(lambda: {each.name for each in self.state.recorded()} == PROGRAMS)
        return self.state.recorded()

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.terminate()
        self.process.communicate(timeout=60)


@pytest.fixture
def up() -> Iterator[Callable[..., Up]]:
    with ExitStack() as ending:

        def begin(*given: Any) -> Up:
            begun = Up(*given)
            ending.callback(begun.end)
            return begun

        yield begin


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "embedded", *arguments],
        capture_output=True,
        text=True,
        timeout=90,
        env=inherited_environment(),
    )


def test_two_stacks_run_side_by_side_and_down_stops_all_of_one(up: Callable[..., Up], tmp_path: Path) -> None:
    first, second = up(tmp_path / "first"), up(tmp_path / "second")
    first.wait_until_ready()
    second.wait_until_ready()

    assert first.url != second.url
    assert first.state.url_file.read_text().strip() == first.url
    assert first.state.api_key() != second.state.api_key()
    models = first.get("/v1/models")
    assert isinstance(models, dict)
    assert "tiny" in [model["id"] for model in models["data"]]

    twice = command("up", "--state", str(tmp_path / "first"), "--port", "0")
    assert twice.returncode == 1
    assert f"is already running in {tmp_path / 'first'} (process {first.process.pid})" in twice.stderr

    programs = first.running()
    said = command("down", "--state", str(tmp_path / "first"))
    assert (said.returncode, said.stdout) == (0, f"stopped what ran in {tmp_path / 'first'}\n")
    assert not any(each.process.is_running() for each in programs)
    assert first.process.wait(10) == 0
    assert not first.state.url_file.exists()
    assert first.process.stdout is not None
    assert first.process.stdout.read() == "", "one line on stdout, no more"

    assert second.get("/healthz")
    idle = command("down", "--state", str(tmp_path / "first"))
    assert (idle.returncode, idle.stdout) == (0, f"nothing runs in {tmp_path / 'first'}\n")


def test_what_a_killed_up_left_is_gone_with_the_next_and_the_state_is_not(
    up: Callable[..., Up], tmp_path: Path
) -> None:
    killed = up(tmp_path).wait_until_ready()
    left = killed.running()
    key = killed.state.api_key()
    killed.process.kill()
    killed.process.wait()

    # On the port that the first one's API still holds.
    following = up(tmp_path, int(killed.url.rpartition(":")[2])).wait_until_ready()

    assert not any(each.process.is_running() for each in left)
    assert following.state.api_key() == key
    assert following.get("/v1/models"), "the key of the first start opens the second"

    api = next(each for each in following.running() if each.name == "api")
    os.kill(api.pid, signal.SIGKILL)
    api.process.wait(5)
    wait_for(lambda: any(each.name == "api" for each in following.state.recorded() if each.pid != api.pid))


def test_nothing_of_a_killed_up_runs_on_for_ever(up: Callable[..., Up], tmp_path: Path) -> None:
    killed = up(tmp_path).wait_until_ready()
    left = killed.running()
    killed.process.kill()
    wait_for(lambda: not any(each.process.is_running() for each in left), 60)
    # In good order: each that works signed off before the database went.
    log = (tmp_path / "logs" / "postgres.log").read_text()
    assert "database system is shut down" in log


def test_a_stack_refuses_what_its_machine_cannot_hold(
    up: Callable[..., Up], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MPO_TRAINING_MEMORY_BYTES", raising=False)
    monkeypatch.setenv("MPO_TRAINING_DEVICE", "cpu")
    small = up(tmp_path, 0, ("-c", SMALL_MACHINE)).wait_until_ready()
    examples = examples_folder()
    assert examples is not None
    with Client(small.url, small.state.api_key()) as client:
        dataset = client.datasets.wait(client.datasets.upload(examples / "pairs.jsonl.gz", name="pairs").id)
        spec = {"model": "tiny", "dataset": dataset.id, "method": {"type": "sft", "sft": {"max_steps": 1}}}
        with pytest.raises(NotValid, match=r"trainings have 0\.52 GiB here") as refused:
            client.jobs.create(spec)
    assert refused.value.code == "not_enough_memory"
