"""A real worker process on the test's Postgres and Valkey: rings, children, orphans, graceful stop."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import select

from core import queue
from core.aftermath import apply_run
from core.database import open_transaction
from core.ids import new_id
from core.storage import storage
from core.tables import Dataset, Run, WorkerRow
from core.work_items import NewRun

pytestmark = pytest.mark.usefixtures("settings_env")

WAIT_SECONDS = 60


def wait_for(ready: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


@contextmanager
def worker(log: Path, slot: str = "cpu") -> Iterator[subprocess.Popen[bytes]]:
    """`python -m workers`, in its own group so that a test's kill reaches the worker alone."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "workers", "--slot", slot, "--concurrency", "2"],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.terminate()
            process.wait(WAIT_SECONDS)


def queue_validation(rows: int) -> tuple[str, str]:
    """Upload rows as they come and queue their validation; returns the dataset's and the run's id."""
    dataset_id = new_id("dataset")
    writer = storage().upload(f"uploads/{dataset_id}/content")
    # A nested column has rows read one by one, so that many of them are seconds of work.
    row = {"prompt": "p", "chosen": "good " * 20, "rejected": "bad " * 20, "nested": [0] * 40}
    line = json.dumps(row).encode() + b"\n"
    for _ in range(rows // 1000 or 1):
        writer.write(line * min(rows, 1000))
    stored = writer.commit()
    source = {
        "kind": "dataset",
        "id": dataset_id,
        "name": dataset_id,
        "location": stored.name,
        "sha256": stored.sha256,
    }
    with open_transaction() as tx:
        tx.session.add(
            Dataset(id=dataset_id, owner="ann", name="pairs", kind="preference", status="validating")
        )
        run_id = queue.enqueue(
            tx,
            NewRun(
                kind="validate_dataset",
                slot="cpu",
                owner="ann",
                subject_id=dataset_id,
                config={"kind": "preference", "max_bad_rows": 0, "media_type": None},
                inputs={"content": [source]},
            ),
        )
    assert run_id is not None
    return dataset_id, run_id


def run_row(run_id: str) -> Run:
    with open_transaction() as tx:
        return tx.session.get_one(Run, run_id)


def dataset_row(dataset_id: str) -> Dataset:
    with open_transaction() as tx:
        return tx.session.get_one(Dataset, dataset_id)


def children_of(pid: int) -> set[int]:
    """Descendants of a process, by /proc."""
    parents = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        parents[int(stat.parent.name)] = int(fields[1])
    found: set[int] = set()
    while more := {child for child, parent in parents.items() if parent in found | {pid}} - found:
        found |= more
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_an_upload_becomes_canonical_rows(tmp_path: Path) -> None:
    with worker(tmp_path / "log"):
        dataset_id, run_id = queue_validation(10)
        wait_for(lambda: dataset_row(dataset_id).status == "ready", (tmp_path / "log").read_text())
    # A burst of jobs rings some hundred times a second: a ring is worth no line.
    assert "workers.tasks.look" not in (tmp_path / "log").read_text()
    dataset, run = dataset_row(dataset_id), run_row(run_id)
    assert dataset.rows == 10
    with storage().open_read(dataset.rows_location or "") as rows:
        assert rows.read(4) == b"PAR1"
    assert (run.state, run.attempt, run.fence) == ("succeeded", 1, 1)


def test_a_killed_worker_takes_its_child_with_it_and_the_next_worker_does_the_run(
    tmp_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_LEASE_SECONDS", "1.5")
    settings_env.setenv("MPO_RENEW_SECONDS", "0.3")
    with worker(tmp_path / "log") as process:
        dataset_id, run_id = queue_validation(200_000)
        wait_for(lambda: run_row(run_id).progress is not None, (tmp_path / "log").read_text())
        family = children_of(process.pid)
        os.kill(process.pid, signal.SIGKILL)
    assert family
    wait_for(lambda: not any(is_alive(pid) for pid in family), f"orphans of {family}")
    with worker(tmp_path / "log"):
        wait_for(lambda: dataset_row(dataset_id).status == "ready", (tmp_path / "log").read_text())
    run = run_row(run_id)
    assert (run.state, run.attempt, run.leases_lost_without_progress) == ("succeeded", 2, 1)


def test_a_worker_that_is_asked_to_stop_gives_its_run_back_and_signs_off(tmp_path: Path) -> None:
    with worker(tmp_path / "log") as process:
        _, run_id = queue_validation(200_000)
        wait_for(lambda: run_row(run_id).progress is not None, (tmp_path / "log").read_text())
        # Asked again and again: the stop that is under way goes on.
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            process.send_signal(number)
        assert process.wait(30) == 0, (tmp_path / "log").read_text()
    run = run_row(run_id)
    assert (run.state, run.attempt, run.crashes_without_progress) == ("queued", 1, 0)
    with open_transaction() as tx:
        assert tx.session.scalars(select(WorkerRow)).all() == []


def test_a_cancelled_run_s_child_is_gone_within_seconds(tmp_path: Path) -> None:
    with worker(tmp_path / "log") as process:
        dataset_id, run_id = queue_validation(200_000)
        wait_for(lambda: run_row(run_id).progress is not None, (tmp_path / "log").read_text())
        before = children_of(process.pid)
        with open_transaction() as tx:
            queue.cancel(tx, run_id)
        apply_run(run_id)
        # The fork server and its tracker stay; the run's child goes.
        wait_for(lambda: len(children_of(process.pid)) < len(before), "the child is still there")
    assert dataset_row(dataset_id).status == "invalid"
    assert run_row(run_id).state == "cancelled"


def test_a_file_of_nonsense_is_a_report_and_not_a_crash(tmp_path: Path) -> None:
    dataset_id, run_id = queue_validation(1)
    location = f"uploads/{dataset_id}/content"
    writer = storage().upload(location)
    writer.write(b'{"prompt": 1}\nnot json\n')
    writer.commit()
    with worker(tmp_path / "log"):
        wait_for(lambda: dataset_row(dataset_id).status == "invalid", (tmp_path / "log").read_text())
    dataset = dataset_row(dataset_id)
    assert (dataset.error or {})["code"] == "invalid_dataset"
    assert [bad["line"] for bad in (dataset.report or {})["bad"]] == [1, 2]
    assert run_row(run_id).crashes_without_progress == 0
