"""Deleting results, and taking them from the cache at the same instant."""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial

import pytest
from sqlalchemy import func, select, text, update

from app.jobs.changes import cancel, delete_job
from core.advance import advance_job
from core.aftermath import apply_run
from core.database import Transaction, open_transaction
from core.events import write_event
from core.retention import let_go
from core.states import StageState
from core.tables import Artifact, ArtifactReference, Event, Job, Metric, Run
from tests.core.jobs import claim_next, finish, job_row, new_job, ready_dataset, run_to_the_end, stage_rows

pytestmark = pytest.mark.usefixtures("settings_env")

SFT = {"type": "sft"}
NOW, WEEK = timedelta(0), timedelta(days=7)
ROUNDS = int(os.environ.get("MPO_TEST_ROUNDS", "10"))
WAIT_SECONDS = 20


def finished_job(dataset: str) -> str:
    job_id = new_job(dataset, SFT)
    run_to_the_end()
    assert job_row(job_id).status == "succeeded"
    return job_id


def delete(job_id: str) -> None:
    with open_transaction() as tx:
        delete_job(tx, "ann", job_id)


def current() -> set[str]:
    with open_transaction() as tx:
        return set(tx.session.scalars(select(Artifact.id).where(Artifact.deleted_at.is_(None))))


def artifacts_of(job_id: str) -> set[str]:
    return {id_ for stage in stage_rows(job_id).values() for id_ in stage.artifacts.values()}


def in_thread(work: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=work)
    thread.start()
    return thread


def test_a_deleted_job_takes_what_no_other_job_refers_to() -> None:
    dataset = ready_dataset()
    first = finished_job(dataset)
    other = new_job(dataset, {"type": "sft", "sft": {"learning_rate": 0.5}})
    run_to_the_end()
    shared = artifacts_of(first) & artifacts_of(other)
    assert shared
    delete(first)
    assert current() == artifacts_of(other)
    delete(other)
    assert current() == set()
    again = new_job(dataset, SFT)
    assert stage_rows(again)["hold_out"].status == "queued"


def test_what_a_live_job_waits_for_is_kept_though_nobody_refers_to_it_yet() -> None:
    dataset = ready_dataset()
    owner, waits = new_job(dataset, SFT), new_job(dataset, SFT)
    claimed = claim_next()
    assert claimed is not None
    finish(claimed)
    # As between a publication and the advance of the second job: it has no reference yet.
    with open_transaction() as tx:
        tx.session.execute(ArtifactReference.__table__.delete().where(ArtifactReference.job_id == waits))
    with open_transaction() as tx:
        _, runs = cancel(tx, "ann", owner)
    for run_id in runs:
        apply_run(run_id)
    delete(owner)
    let_go(NOW, NOW)
    assert current() == artifacts_of(waits)
    run_to_the_end()
    assert job_row(waits).status == "succeeded"


def test_unreferenced_results_serve_as_a_cache_for_their_time() -> None:
    dataset = ready_dataset()
    job_id = finished_job(dataset)
    made = current()
    with open_transaction() as tx:
        tx.session.execute(ArtifactReference.__table__.delete())
    let_go(WEEK, WEEK)
    assert current() == made
    hit = new_job(dataset, SFT)
    assert all(stage.cached for stage in stage_rows(hit).values())
    with open_transaction() as tx:
        long_ago = func.clock_timestamp() - 2 * WEEK
        tx.session.execute(update(Artifact).values(unreferenced_at=long_ago))
    # Needed again: its time begins anew when that ends.
    let_go(WEEK, WEEK)
    assert current() == made
    with open_transaction() as tx:
        assert set(tx.session.scalars(select(Artifact.unreferenced_at))) == {None}
        tx.session.execute(ArtifactReference.__table__.delete())
    let_go(NOW, WEEK)
    assert current() == set()
    assert job_row(job_id).status == "succeeded"


def test_a_hit_that_comes_first_keeps_the_result() -> None:
    dataset = ready_dataset()
    job_id = finished_job(dataset)
    made = current()
    with open_transaction() as tx:
        # Another job's hit, not committed yet: it holds the artifacts and the reference to them.
        hit = _new_hit(tx, dataset)
        delete(job_id)
        assert stage_states(tx, hit) == {"succeeded"}
    assert made <= current()
    let_go(NOW, NOW)
    assert made <= current()


def test_a_hit_that_comes_second_does_the_work_anew() -> None:
    dataset = ready_dataset()
    job_id = finished_job(dataset)
    made: list[str] = []
    with open_transaction() as tx:
        delete_job(tx, "ann", job_id)
        thread = in_thread(partial(_submit, dataset, made))
        _until_somebody_waits(tx)
    thread.join(WAIT_SECONDS)
    assert current() == set()
    assert {name: s.status for name, s in stage_rows(made[0]).items()} == {
        "hold_out": "queued",
        "sft": "waiting",
    }
    run_to_the_end()
    assert job_row(made[0]).status == "succeeded"
    assert current() == artifacts_of(made[0])


def test_a_hit_and_a_deletion_at_the_same_instant() -> None:
    dataset = ready_dataset()
    job_id = finished_job(dataset)
    for number in range(ROUNDS):
        made: list[str] = []
        works = [partial(delete, job_id), partial(_submit, dataset, made)]
        _at_once(works if number % 2 else works[::-1])
        (hit,) = made
        cached = {s.name for s in stage_rows(hit).values() if s.cached}
        let_go(NOW, NOW)
        assert artifacts_of(hit) <= current(), "a hit lost what it holds"
        run_to_the_end()
        stages = stage_rows(hit)
        assert {s.status for s in stages.values()} == {StageState.SUCCEEDED}
        assert cached <= {s.name for s in stages.values() if s.cached}
        assert artifacts_of(hit) == current(), "something is kept that nobody refers to, or the reverse"
        job_id = hit


def test_a_deleted_job_s_figures_go_and_what_another_job_shows_stays() -> None:
    dataset = ready_dataset()
    first = new_job(dataset, SFT)
    run_to_the_end()
    second = new_job(dataset, SFT)
    run_id = stage_rows(first)["sft"].run_id
    assert run_id == stage_rows(second)["sft"].run_id
    with open_transaction() as tx:
        tx.session.add(Metric(run_id=run_id, step=1, values={"loss": 1.0}))
        tx.session.get_one(Run, run_id).log = "epoch 1"
        for job_id in (first, second):
            write_event(tx, tx.session.get_one(Job, job_id, with_for_update=True), "job.created", "made")
    delete(first)
    let_go(WEEK, WEEK)
    assert counted(first) > 0
    let_go(WEEK, NOW)
    assert (counted(first), counted(second) > 0, figures(run_id)) == (0, True, (1, "epoch 1"))
    delete(second)
    let_go(WEEK, NOW)
    assert (counted(second), figures(run_id)) == (0, (0, ""))


def counted(job_id: str) -> int:
    with open_transaction() as tx:
        return tx.session.scalar(select(func.count()).select_from(Event).where(Event.job_id == job_id)) or 0


def figures(run_id: str | None) -> tuple[int, str]:
    with open_transaction() as tx:
        metrics = tx.session.scalar(select(func.count()).select_from(Metric).where(Metric.run_id == run_id))
        return metrics or 0, tx.session.get_one(Run, run_id).log


def _submit(dataset: str, made: list[str]) -> None:
    made.append(new_job(dataset, SFT))


def _at_once(works: list[Callable[[], None]]) -> None:
    """Each in a thread, begun together; raises what one of them raises."""
    barrier = threading.Barrier(len(works))

    def work_together(work: Callable[[], None]) -> None:
        barrier.wait(WAIT_SECONDS)
        work()

    with ThreadPoolExecutor(len(works)) as pool:
        for done in [pool.submit(work_together, work) for work in works]:
            done.result(WAIT_SECONDS)


def stage_states(tx: Transaction, job_id: str) -> set[str]:
    statement = text("SELECT DISTINCT status FROM stages WHERE job_id = :id")
    return set(tx.session.scalars(statement, {"id": job_id}))


def _new_hit(tx: Transaction, dataset: str) -> str:
    """A second job of the same plan, its rows copied in this transaction, and advanced."""
    source = tx.session.scalar(select(Job.id).where(Job.dataset_id == dataset).order_by(Job.id).limit(1))
    for table, names in (("jobs", "id"), ("stages", "job_id"), ("job_inputs", "job_id")):
        columns = tx.session.scalars(
            text("SELECT column_name FROM information_schema.columns WHERE table_name = :t"), {"t": table}
        ).all()
        fresh = {names: "'job_hit'", "status": "DEFAULT", "finished_at": "NULL", "cached": "false"}
        fresh |= {"run_id": "NULL", "artifacts": "'{}'"}
        kept = [c for c in columns if c != "status"]
        values = ", ".join(fresh.get(c, f'"{c}"') for c in kept)
        listed = ", ".join(f'"{c}"' for c in kept)
        place = f'SELECT {values} FROM {table} WHERE "{names}" = :id'
        tx.session.execute(text(f"INSERT INTO {table} ({listed}) {place}"), {"id": source})
    advance_job(tx, "job_hit")
    tx.session.flush()
    return "job_hit"


def _until_somebody_waits(tx: Transaction) -> None:
    of_ours = "wait_event_type = 'Lock' AND datname = current_database()"
    waiting = text(f"SELECT count(*) FROM pg_stat_activity WHERE {of_ours}")
    for _ in range(WAIT_SECONDS * 1000):
        if tx.session.scalar(waiting):
            return
        tx.session.execute(text("SELECT pg_sleep(0.001)"))
        tx.session.execute(text("SELECT pg_stat_clear_snapshot()"))
    pytest.fail("nobody waits for the deletion")
