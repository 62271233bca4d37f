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
from tests.app.jobs.factories import make_model
from tests.core.jobs import new_job, stage_rows
from tests.object_store import door, fresh_bucket
from tests.workers.test_worker_process import dataset_row, queue_validation, run_row, wait_for, worker


def use_store(env: pytest.MonkeyPatch, url: str) -> None:
    """This process's and every started one's store from now on."""
    env.setenv("MPO_STORE_URL", url)
    settings.cache_clear()
    stores.storage.cache_clear()


def test_an_upload_and_a_stage_are_done_on_s3_though_it_is_slower_than_a_lease(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, s3_url: str, bucket: str
) -> None:
    assert bucket
    settings_env.setenv("MPO_LEASE_SECONDS", "10")
    settings_env.setenv("MPO_RENEW_SECONDS", "0.3")
    settings_env.setenv("MPO_RECOVERY_SECONDS", "0.3")
    log = tmp_path / "log"
    with door(s3_url) as slow:
        settings_env.setenv("AWS_ENDPOINT_URL", slow.url)
        use_store(settings_env, fresh_bucket())
        make_model(owner="ann")
        dataset_id, run_id = queue_validation(10)
        slow.wait_seconds = 14.0
        with worker(log):
            wait_for(lambda: dataset_row(dataset_id).status == "ready", log.read_text())
            job_id = new_job(dataset_id, {"type": "sft", "hold_out": {"fraction": 0}})
            wait_for(lambda: "train" in stage_rows(job_id)["hold_out"].artifacts, log.read_text())
        with storage().open_read(dataset_row(dataset_id).rows_location or "") as rows:
            assert rows.read(4) == b"PAR1"
        for made in (run_id, stage_rows(job_id)["hold_out"].run_id):
            assert storage().holds_folder(f"runs/{made}/1/out")
    run = run_row(run_id)
    assert (run.state, run.attempt, run.fence, run.leases_lost_without_progress) == ("succeeded", 1, 1, 0)


def test_a_store_that_takes_nothing_fails_the_run_by_name_and_the_next_one_is_done(
    tmp_path: Path, settings_env: pytest.MonkeyPatch, store: Path
) -> None:
    assert settings_env
    full, full_run = queue_validation(10)
    read_only, read_only_run = queue_validation(10)
    healthy, healthy_run = queue_validation(10)
    # The kernel's own full disk, under the name that the rows will have until they are whole.
    out = store / "runs" / full_run / "1" / "out"
    out.mkdir(parents=True)
    (out / "rows.parquet.part").symlink_to("/dev/full")
    # Nobody, not even root, makes folders here.
    (store / "runs" / read_only_run).symlink_to("/proc/self/fdinfo")
    log = tmp_path / "log"
    with worker(log):
        for dataset_id, status in ((healthy, "ready"), (full, "invalid"), (read_only, "invalid")):
            wait_for(lambda d=dataset_id, s=status: dataset_row(d).status == s, log.read_text())
    for dataset_id, run_id in ((full, full_run), (read_only, read_only_run)):
        run = run_row(run_id)
        assert (run.state, run.attempt, (run.error or {})["code"]) == ("failed", 1, "storage_failed")
        assert (dataset_row(dataset_id).error or {})["code"] == "storage_failed"
        assert not storage().holds_folder(f"runs/{run_id}/1/out")
    assert (run_row(full_run).error or {})["message"] == "The store: No space left on device"
    with open_transaction() as tx:
        assert tx.session.scalars(select(Artifact.run_id)).all() == [healthy_run]


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
