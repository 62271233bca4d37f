"""The sweep frees what nothing names any more, and nothing else: on a real database and store."""

import math
import os
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest
from sqlalchemy import text, update

from core import queue
from core.aftermath import apply_run
from core.database import open_transaction
from core.settings import settings
from core.storage import storage
from core.sweeping import Freed, Sweep
from core.tables import Dataset, Run
from core.work_items import ClaimedRun, NewRun
from tests.factories import make_dataset, new_artifact
from workers.sweep import sweep_all
from workers.sweeper import step, walk

pytestmark = pytest.mark.usefixtures("settings_env")

NOW = timedelta(0)
HOUR = timedelta(hours=1)
WEEK = timedelta(days=7)


def put(location: str, name: str = "file", content: bytes = b"0123456789") -> None:
    writer = storage().upload(f"{location}/{name}")
    writer.write(content)
    writer.commit()


def checkpoint(claimed: ClaimedRun, step: int) -> str:
    """Store and record a checkpoint, as a worker does."""
    location = f"runs/{claimed.id}/{claimed.fence}/checkpoints/{step}"
    put(location)
    with open_transaction() as tx:
        queue.record_checkpoint(tx, claimed, location, step)
    return location


def queued(key: str | None = "key", inputs: list[dict[str, str]] | None = None) -> str:
    with open_transaction() as tx:
        new = NewRun("sft", "gpu", "ann", "sft", {}, {"data": inputs or []}, key=key)
        run_id = queue.enqueue(tx, new)
    assert run_id is not None
    return run_id


def claim() -> ClaimedRun:
    with open_transaction() as tx:
        claimed = queue.claim(tx, "gpu", "wrk_test")
    assert claimed is not None
    return claimed


def publish(claimed: ClaimedRun) -> str:
    location = f"runs/{claimed.id}/{claimed.fence}/out"
    put(location, "model/weights")
    put(location, "summary.json")
    with open_transaction() as tx:
        queue.publish(tx, claimed, [new_artifact("model", f"{location}/model")], {})
    return location


def left() -> set[str]:
    """Folders of the store's runs in which files lie."""
    root = storage().root_folder
    assert root is not None
    return {str(path.parent.relative_to(root)) for path in (root / "runs").rglob("*") if path.is_file()}


def sweep(grace: timedelta = NOW, keep: timedelta = WEEK) -> Freed:
    return sweep_all(grace, keep)


def test_what_a_run_has_published_stays_and_its_checkpoints_go() -> None:
    queued()
    claimed = claim()
    kept = checkpoint(claimed, 5)
    out = publish(claimed)
    freed = sweep()
    assert left() == {out, f"{out}/model"}
    assert (freed.places, freed.files, freed.bytes) == (1, 1, 10)
    assert kept not in left()
    assert sweep().places == 0


def test_a_running_fence_is_not_touched_and_an_older_one_is() -> None:
    queued()
    first = claim()
    put(f"runs/{first.id}/{first.fence}/out")
    with open_transaction() as tx:
        queue.give_back(tx, first)
    # Queued again: until somebody claims it, the fence is the newest.
    assert sweep().places == 0
    second = claim()
    put(f"runs/{second.id}/{second.fence}/out")
    put(f"runs/{second.id}/{second.fence}/checkpoints/1")
    assert sweep().places == 1
    running = f"runs/{second.id}/{second.fence}"
    assert left() == {f"{running}/out", f"{running}/checkpoints/1"}
    assert storage().names(f"runs/{second.id}") == [str(second.fence)]


def test_the_checkpoint_of_an_earlier_fence_stays_while_it_is_the_newest() -> None:
    queued()
    first = claim()
    kept = checkpoint(first, 5)
    put(f"runs/{first.id}/{first.fence}/checkpoints/6")
    with open_transaction() as tx:
        queue.give_back(tx, first)
    second = claim()
    sweep()
    assert left() == {kept}
    newer = checkpoint(second, 9)
    sweep()
    assert left() == {newer}


def test_a_paused_run_keeps_all_it_has() -> None:
    run_id = queued()
    claimed = claim()
    kept = checkpoint(claimed, 5)
    with open_transaction() as tx:
        queue.pause(tx, run_id)
    late = f"runs/{run_id}/{claimed.fence}/checkpoints/6"
    put(late)
    assert sweep().places == 0
    assert left() == {kept, late}


def test_nothing_younger_than_the_grace_is_freed() -> None:
    queued()
    claimed = claim()
    checkpoint(claimed, 5)
    publish(claimed)
    before = left()
    freed = sweep(grace=HOUR)
    assert (freed.places, freed.waiting) == (0, 1)
    assert left() == before
    age(HOUR)
    assert sweep(grace=HOUR).places == 1


def test_the_checkpoint_of_a_cancelled_run_serves_its_successor_until_that_has_published() -> None:
    run_id = queued()
    kept = checkpoint(claim(), 5)
    with open_transaction() as tx:
        queue.cancel(tx, run_id)
    queued()
    # The first run alone would let it go: no job asks for its key.
    sweep(keep=NOW)
    assert left() == {kept}
    successor = claim()
    assert (successor.checkpoint or {})["location"] == kept
    out = publish(successor)
    sweep()
    assert left() == {out, f"{out}/model"}


def test_the_checkpoint_of_a_failed_run_that_no_job_asks_for_goes() -> None:
    queued()
    claimed = claim()
    checkpoint(claimed, 5)
    with open_transaction() as tx:
        queue.fail(tx, claimed, {"code": "x", "message": "y"})
    sweep()
    assert left() == set()
    assert storage().names("runs") == []


def test_what_a_late_attempt_writes_goes_with_the_next_sweep() -> None:
    queued()
    first = claim()
    with open_transaction() as tx:
        queue.give_back(tx, first)
    out = publish(claim())
    sweep()
    put(f"runs/{first.id}/{first.fence}/out", "model/weights")
    assert sweep().places == 1
    assert left() == {out, f"{out}/model"}


def test_a_run_that_no_row_knows_is_left_alone() -> None:
    put("runs/run_of_another_deployment/1/out")
    assert sweep().places == 0
    assert left() == {"runs/run_of_another_deployment/1/out"}


def test_an_input_of_a_run_that_has_not_ended_stays_though_its_dataset_is_deleted() -> None:
    with open_transaction() as tx:
        dataset = make_dataset(tx, owner="ann", status="validating", location="uploads/up")
        run_id = queue.enqueue(tx, NewRun("validate_dataset", "gpu", "ann", dataset.id, {}))
        dataset.run_id = run_id
    rows = publish_rows(claim())
    put("uploads", "up")
    reader = queued(inputs=[{"id": dataset.id, "location": f"{rows}/rows.parquet"}])
    delete_dataset(dataset.id)
    for state in ("queued", "running", "paused"):
        assert sweep().waiting == 1, state
        assert rows in left()
        if state == "queued":
            claim()
        elif state == "running":
            with open_transaction() as tx:
                queue.pause(tx, reader)
    assert storage().names("uploads") == []
    with open_transaction() as tx:
        queue.cancel(tx, reader)
    sweep()
    assert left() == set()


def publish_rows(claimed: ClaimedRun) -> str:
    location = f"runs/{claimed.id}/{claimed.fence}/out"
    put(location, "rows.parquet")
    with open_transaction() as tx:
        queue.publish(tx, claimed, [new_artifact("rows", f"{location}/rows.parquet")], {})
    apply_run(claimed.id)
    return location


def delete_dataset(dataset_id: str) -> None:
    from app.datasets.service import delete_dataset as delete

    with open_transaction() as tx:
        delete(tx, "ann", dataset_id)


def test_uploads_go_with_their_dataset_and_others_once_nobody_can_claim_them() -> None:
    with open_transaction() as tx:
        kept = make_dataset(tx, location="uploads/kept").id
        gone = make_dataset(tx, location="uploads/gone").id
    for name in ("kept", "gone", "refused", "broken-off.part"):
        put("uploads", name)
    put("probes", "left")
    with open_transaction() as tx:
        tx.session.execute(update(Dataset).where(Dataset.id == gone).values(deleted_at=Dataset.created_at))
    freed = sweep()
    # Whether the other two wait for their transaction nobody can tell: they keep their whole grace.
    assert (freed.places, freed.waiting) == (1, 3)
    assert storage().names("uploads") == ["broken-off.part", "kept", "refused"]
    age(HOUR)
    assert sweep().places == 3
    assert storage().names("uploads") == ["kept"]
    assert storage().names("probes") == []
    assert kept


def test_what_cannot_be_removed_is_counted_and_does_not_keep_the_rest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("a", "b"):
        queued(key)
        claimed = claim()
        put(f"runs/{claimed.id}/{claimed.fence}/out")
        with open_transaction() as tx:
            queue.fail(tx, claimed, {"code": "x", "message": "y"})
    delete, refused = storage().delete, []

    def refuse_once(location: str) -> None:
        if not refused:
            refused.append(location)
            raise PermissionError(location)
        delete(location)

    monkeypatch.setattr(storage(), "delete", refuse_once)
    freed = sweep()
    assert (freed.places, freed.failed) == (1, 1)
    assert len(left()) == 1
    assert sweep().places == 1


def test_a_run_whose_folder_cannot_be_read_does_not_keep_the_rest(store: Path) -> None:
    places = []
    for key in ("a", "b"):
        queued(key)
        claimed = claim()
        places.append(f"runs/{claimed.id}/{claimed.fence}/out")
        put(places[-1])
        with open_transaction() as tx:
            queue.fail(tx, claimed, {"code": "x", "message": "y"})
    put("uploads/left")
    age(WEEK)
    unreadable = store / "runs" / places[0].split("/")[1]
    unreadable.rename(store / "aside")
    unreadable.symlink_to(unreadable)
    assert (swept := sweep()).failed == 1
    assert (swept.places, left(), storage().names("uploads")) == (2, set(), [])


def test_bytes_are_freed_though_rows_cannot_be_let_go_of(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv("MPO_SWEEP_GRACE_SECONDS", "0")
    settings.cache_clear()
    queued()
    claimed = claim()
    put(f"runs/{claimed.id}/{claimed.fence}/out")
    with open_transaction() as tx:
        queue.fail(tx, claimed, {"code": "x", "message": "y"})
        tx.session.execute(text("ALTER TABLE events RENAME TO away"))
    try:
        freed = step(Event())
    finally:
        with open_transaction() as tx:
            tx.session.execute(text("ALTER TABLE away RENAME TO events"))
    assert freed is not None
    assert freed.places == 1


def age(by: timedelta) -> None:
    """Make every file of the store that much older."""
    root = storage().root_folder
    assert root is not None
    for path in Path(root).rglob("*"):
        if path.is_file():
            then = path.stat().st_mtime - by.total_seconds() - 1
            os.utime(path, (then, then))


def test_a_run_s_row_is_what_says_that_a_fence_is_over() -> None:
    run_id = queued()
    claimed = claim()
    put(f"runs/{run_id}/{claimed.fence}/out")
    age(WEEK)
    assert sweep(grace=HOUR).places == 0
    with open_transaction() as tx:
        queue.cancel(tx, run_id)
    assert sweep(grace=HOUR).places == 1
    with open_transaction() as tx:
        assert tx.session.get_one(Run, run_id).state == "cancelled"


def test_a_checkpoint_that_a_run_is_just_starting_from_is_kept() -> None:
    run_id = queued()
    kept = checkpoint(claim(), 5)
    with open_transaction() as tx:
        queue.cancel(tx, run_id)
    with open_transaction() as tx:
        # Not committed yet: nobody else can see that this run names the checkpoint too.
        queue.enqueue(tx, NewRun("sft", "gpu", "ann", "sft", {}, key="key"))
        sweep(keep=NOW)
    assert left() == {kept}
    assert (claim().checkpoint or {})["location"] == kept


def test_a_step_is_taken_once_and_goes_on_where_the_last_one_ended(settings_env: pytest.MonkeyPatch) -> None:
    settings_env.setenv("MPO_SWEEP_GRACE_SECONDS", "0")
    settings.cache_clear()
    for key in ("a", "b"):
        queued(key)
        claimed = claim()
        put(f"runs/{claimed.id}/{claimed.fence}/out")
        with open_transaction() as tx:
            queue.fail(tx, claimed, {"code": "x", "message": "y"})
    first, second = storage().names("runs")
    sweep_ = Sweep(storage(), NOW, NOW)
    assert walk(sweep_, "", 0.0, Event()) == "", "no time is left: it begins anew"
    assert walk(sweep_, first, math.inf, Event()) == ""
    assert storage().names("runs") == [first]
    done = step(Event())
    assert done is not None
    assert done.places == 1
    assert storage().names("runs") == []
    assert step(Event()) is None
    assert second


def test_a_store_on_s3_is_swept_too(settings_env: pytest.MonkeyPatch, bucket: str) -> None:
    settings_env.setenv("MPO_STORE_URL", bucket)
    settings.cache_clear()
    storage.cache_clear()
    queued()
    claimed = claim()
    checkpoint(claimed, 5)
    out = publish(claimed)
    put("uploads", "refused")
    broken = storage().upload("uploads/broken")
    broken.write(b"x" * (17 << 20))
    young = Sweep(storage(), NOW, HOUR)
    young.uploads()
    assert (young.freed.places, young.freed.waiting) == (0, 1)
    assert sweep().places == 1
    assert storage().names(f"runs/{claimed.id}/{claimed.fence}") == ["out"]
    assert storage().exists(f"{out}/model/weights")
    old = Sweep(storage(), NOW, NOW)
    old.uploads()
    assert old.freed.places == 2
    assert storage().names("uploads") == []
    fs, root = storage().remote
    assert fs.list_multipart_uploads(root.partition("/")[0]) == []
    broken.abort()
