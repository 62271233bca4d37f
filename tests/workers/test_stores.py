"""Real workers over a store on S3, and over stores that fail: the run says why, and the service lives on."""

import subprocess
import sys
from pathlib import Path

import pytest
from sqlalchemy import select

from core import queue
from core import storage as stores
from core.database import open_transaction
from core.settings import settings
from core.storage import storage
from core.tables import Artifact
from tests.object_store import door, fresh_bucket
from tests.workers.test_worker_process import dataset_row, queue_validation, run_row, wait_for, worker


def use_store(env: pytest.MonkeyPatch, url: str) -> None:
    """This process's and every started one's store from now on."""
    env.setenv("MPO_STORE_URL", url)
    settings.cache_clear()
    stores.storage.cache_clear()


def test_an_upload_on_s3_becomes_canonical_rows_on_s3(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, bucket: str
) -> None:
    use_store(settings_env, bucket)
    dataset_id, run_id = queue_validation(10)
    with worker(tmp_path / "log"):
        wait_for(lambda: run_row(run_id).state != "queued", "claimed")
        wait_for(lambda: dataset_row(dataset_id).status == "ready", (tmp_path / "log").read_text())
    dataset = dataset_row(dataset_id)
    with storage().open_read(dataset.rows_location or "") as rows:
        assert rows.read(4) == b"PAR1"
    assert storage().holds_folder(f"runs/{run_id}/1/out")


def test_a_store_that_is_slower_than_a_lease_costs_time_and_nothing_else(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, s3_url: str, bucket: str
) -> None:
    assert bucket
    settings_env.setenv("MPO_LEASE_SECONDS", "5")
    settings_env.setenv("MPO_RENEW_SECONDS", "0.3")
    settings_env.setenv("MPO_RECOVERY_SECONDS", "0.3")
    with door(s3_url) as slow:
        settings_env.setenv("AWS_ENDPOINT_URL", slow.url)
        use_store(settings_env, fresh_bucket())
        dataset_id, run_id = queue_validation(10)
        slow.wait_seconds = 7.0
        with worker(tmp_path / "log"):
            wait_for(lambda: dataset_row(dataset_id).status == "ready", (tmp_path / "log").read_text())
    run = run_row(run_id)
    assert (run.state, run.attempt, run.fence, run.leases_lost_without_progress) == ("succeeded", 1, 1, 0)


@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_store_that_takes_nothing_fails_the_run_by_name_and_the_next_one_is_done(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, store: Path, fault: str
) -> None:
    assert settings_env
    dataset_id, run_id = queue_validation(10)
    healthy, healthy_run = queue_validation(10)
    if fault == "full":
        # The kernel's own full disk, under the name that the rows will have until they are whole.
        out = store / "runs" / run_id / "1" / "out"
        out.mkdir(parents=True)
        (out / "rows.parquet.part").symlink_to("/dev/full")
    else:
        (store / "runs").mkdir()
        (store / "runs" / run_id).symlink_to("/proc/self/fdinfo")
    with worker(tmp_path / "log"):
        wait_for(lambda: dataset_row(healthy).status == "ready", (tmp_path / "log").read_text())
        wait_for(lambda: dataset_row(dataset_id).status == "invalid", (tmp_path / "log").read_text())
    run = run_row(run_id)
    assert run.state == "failed"
    assert (run.error or {})["code"] == "storage_failed"
    said = (run.error or {})["message"]
    assert ("No space left on device" in said) if fault == "full" else said
    assert (dataset_row(dataset_id).error or {})["code"] == "storage_failed"
    assert run_row(healthy_run).state == "succeeded"
    with open_transaction() as tx:
        assert tx.session.scalars(select(Artifact.run_id)).all() == [healthy_run]
    assert not storage().holds_folder(f"runs/{run_id}/1/out")


def test_the_command_says_what_it_frees(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, store: Path
) -> None:
    settings_env.setenv("MPO_SCRATCH", str(tmp_path / "scratch"))
    _, run_id = queue_validation(10)
    left = store / "runs" / run_id / "1" / "out"
    left.mkdir(parents=True)
    (left / "rows.parquet.part").write_bytes(b"12345")
    with open_transaction() as tx:
        queue.cancel(tx, run_id)
    command = [sys.executable, "-m", "workers.sweep", "--grace-seconds", "0"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    said = "freed 1 places (1 files, 5 bytes); 1 wait for their grace to end; cleared 0 scratch folders\n"
    assert ran.stdout == said
    assert not (store / "runs" / run_id).exists()
