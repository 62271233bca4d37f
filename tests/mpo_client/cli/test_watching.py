"""Watching a job: what is drawn at 80 columns, what is said where there is no terminal, how it ends."""

import io
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mpo_client.cli.job_board import board
from mpo_client.cli.screen import Screen
from mpo_client.cli.watching import Lines
from mpo_client.client import Client
from mpo_client.jobs import Job
from tests.app.jobs.factories import work_until
from tests.mpo_client.conftest import Mpo

ROOT = Path(__file__).resolve().parents[3]
COLUMNS, ROWS = 80, 24
RUNNING = {
    "name": "reward_model_fold_12",
    "kind": "reward_model",
    "status": "running",
    "progress": {"step": 1300, "total_steps": 3400, "fraction": 0.38, "eta_seconds": 4000},
    "metrics": {"learning_rate": 1e-5, "accuracy": 0.71, "loss": 0.58, "note": "x"},
}
JOB = {
    "id": "job_01M8HK84TF6Q7GZJV6XQ7E6ZNJ",
    "name": "a name that is far too long to stand beside everything else on one line of a screen",
    "status": "running",
    "progress": {"fraction": 0.42, "eta_seconds": 5400},
    "stages": [
        {"name": "hold_out", "kind": "hold_out", "status": "succeeded", "cached": True},
        RUNNING,
        {
            "name": "ppo",
            "kind": "ppo",
            "status": "failed",
            "started_at": 100,
            "finished_at": 190,
            "error": {"code": "out_of_memory", "message": "no memory left"},
        },
        {"name": "evaluate", "kind": "evaluate", "status": "waiting"},
    ],
}


def test_a_job_fits_80_columns() -> None:
    file = io.StringIO()
    Console(file=file, width=COLUMNS, force_terminal=True, color_system=None, markup=False).print(
        board(Job.model_validate(JOB))
    )

    lines = file.getvalue().splitlines()
    assert len(lines) == 2 + len(JOB["stages"])  # nothing is wrapped
    assert max(map(len, lines)) <= COLUMNS
    assert lines[0].startswith("job_01M8HK84TF6Q7GZJV6XQ7E6ZNJ running  42%  1 h 30 left")
    assert re.search(r"hold_out +cached", lines[2])
    assert re.search(r"reward_model_fold_12 running   ████▌·{7} +1300/3400 +67 min accuracy 0", lines[3])
    assert re.search(r"ppo +failed .*\(2 min\) out_of_mem", lines[4])
    assert "evaluate" in lines[5]


def test_lines_tell_each_change_once(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines(Screen())
    for _ in range(3):
        lines.show(Job.model_validate(JOB))

    assert capsys.readouterr().out.splitlines() == [
        "hold_out: cached",
        "reward_model_fold_12: running, step 1300/3400, 67 min left, "
        "accuracy 0.71, loss 0.58, learning_rate 1e-05",
        "ppo: failed, out_of_memory: no memory left",
    ]


def test_a_job_that_succeeds_ends_with_its_models(at_service: Mpo, sdk: Client, spec: dict[str, Any]) -> None:
    job = sdk.jobs.create(spec)
    with meanwhile(lambda: work_until(None)):
        found = at_service("jobs", "watch", job.id)

    assert found.exit_code == 0, found.output
    assert "score: succeeded" in found.stdout
    assert f"{job.id} succeeded" in found.stdout
    assert f"  {job.id}:ppo" in found.stdout
    assert json.loads(at_service("jobs", "watch", job.id, "--json").stdout)["status"] == "succeeded"


def test_a_job_that_waits_for_a_person_says_how_to_go_on(
    at_service: Mpo, sdk: Client, spec: dict[str, Any]
) -> None:
    job = sdk.jobs.create({**spec, "pause_after": ["score"]})
    with meanwhile(lambda: work_until(None)):
        found = at_service("jobs", "watch", job.id)

    assert found.exit_code == 5, found.output
    assert f"mpo jobs resume {job.id}" in found.stderr


def test_ctrl_c_leaves_the_job_running(
    url: str, admin_key: str, sdk: Client, spec: dict[str, Any], tmp_path: Path
) -> None:
    job = sdk.jobs.create(spec)
    terminal, shown = on_terminal(["jobs", "watch", job.id], url, admin_key, tmp_path)
    terminal.read_until(b"evaluate")
    terminal.write(b"\x03")

    assert shown.wait(20) == 130
    text = terminal.rest()
    assert f"{job.id} goes on without you" in text
    assert f"mpo jobs cancel {job.id}" in text
    assert "Traceback" not in text
    assert sdk.jobs.get(job.id).status in ("queued", "running")


class Terminal:
    """The master's side of a pseudo-terminal."""

    def __init__(self, file: int) -> None:
        self._file, self._text = file, b""

    def read_until(self, text: bytes) -> None:
        while text not in self._text:
            self._text += os.read(self._file, 1 << 16)

    def write(self, keys: bytes) -> None:
        os.write(self._file, keys)

    def rest(self) -> str:
        try:
            while chunk := os.read(self._file, 1 << 16):
                self._text += chunk
        except OSError:
            pass  # how a terminal that nobody uses any more ends
        os.close(self._file)
        return self._text.decode()


def on_terminal(
    args: list[str], url: str, key: str, folder: Path
) -> tuple[Terminal, subprocess.Popen[bytes]]:
    """The command on a terminal of 80 columns, which is its controlling one: Ctrl-C reaches it."""
    master, slave = pty.openpty()
    ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MPO_URL": url,
        "MPO_API_KEY": key,
        "TERM": "xterm",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", _ATTACHED, *args],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        env=environment,
        cwd=folder,
        start_new_session=True,
    )
    os.close(slave)
    return Terminal(master), process


_ATTACHED = """
import fcntl, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from mpo_client.cli.main import main
main()
"""


class meanwhile:  # noqa: N801 - reads as what it does
    """Does something on a thread, a moment after the block has begun, and waits for it at the block's end."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._thread = threading.Thread(target=lambda: (time.sleep(0.3), work()))

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._thread.join()
