"""Recovery's own clock, on the test's Postgres."""

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError

from core import queue
from core.aftermath import unapplied_runs
from core.database import engine, open_transaction
from core.tables import Run
from core.work_items import NewRun
from experiments.chaos.stack import wait_until
from workers import recovery as recovery_module
from workers.recovery import Recovery

WAIT_SECONDS = 60


def state(run_id: str) -> str:
    with open_transaction() as tx:
        return tx.session.get_one(Run, run_id).state


def test_a_lost_lease_is_expired_as_soon_as_the_database_has_been_seen_for_one(
    settings_env: pytest.MonkeyPatch,
) -> None:
    settings_env.setenv("MPO_LEASE_SECONDS", "0.5")
    settings_env.setenv("MPO_RECOVERY_SECONDS", "600")
    new = NewRun(kind="validate_dataset", slot="cpu", owner="ann", subject_id="ds_1", config={}, inputs={})
    with open_transaction() as tx:
        run_id = queue.enqueue(tx, new)
        assert run_id is not None
    with open_transaction() as tx:
        assert queue.claim(tx, "cpu", "wrk_dead") is not None
    recovery = Recovery("wrk_alive", "cpu", 1)
    recovery.start()
    try:
        # The usual pause would be over only long after the test has given up.
        wait_until(lambda: state(run_id) == "queued", "the run to be queued again", WAIT_SECONDS)
    finally:
        recovery.stop()


@pytest.mark.usefixtures("settings_env")
def test_a_pass_reads_no_run_that_was_told_long_ago() -> None:
    ended = text("""
        INSERT INTO runs (id, owner, kind, slot, subject_id, state, applied)
        SELECT 'run_' || n, 'ann', 'dpo', 'gpu', 'dpo', 'succeeded', true FROM generate_series(1, 2000) AS n
    """)
    sent: list[tuple[str, dict[str, object]]] = []

    def note(
        _connection: object, _cursor: object, statement: str, values: dict[str, object], *_: object
    ) -> None:
        sent.append((statement, values))

    with open_transaction() as tx:
        tx.session.execute(ended)
        tx.session.execute(text("ANALYZE runs"))
        event.listen(engine(), "before_cursor_execute", note)
        assert unapplied_runs(tx, 100) == []
        event.remove(engine(), "before_cursor_execute", note)
        ((statement, values),) = sent
        plan = tx.session.connection().exec_driver_sql(f"EXPLAIN {statement}", values).scalars().all()
    assert "ix_runs_unapplied" in "".join(plan), plan


class Clocks:
    """Of one machine: both stand still with it, and only the calendar's is told afterwards."""

    calendar = running = 1_000.0

    def monotonic(self) -> float:
        return self.running

    def time(self) -> float:
        return self.calendar

    def run(self, seconds: float) -> None:
        self.calendar += seconds
        self.running += seconds


def lost_run() -> str:
    new = NewRun(kind="validate_dataset", slot="cpu", owner="ann", subject_id="ds_1", config={}, inputs={})
    with open_transaction() as tx:
        run_id = queue.enqueue(tx, new)
    with open_transaction() as tx:
        claimed = queue.claim(tx, "cpu", "wrk_dead")
        assert claimed is not None
        tx.session.execute(text("UPDATE runs SET lease_until = clock_timestamp() - interval '1 s'"))
    return run_id or ""


@pytest.fixture
def untold(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Runs that recovery carries on: here it only says which."""
    told: list[str] = []
    monkeypatch.setattr(recovery_module, "apply_run", told.append)
    return told


def test_after_a_standstill_workers_get_a_whole_lease_to_renew(
    settings_env: pytest.MonkeyPatch, untold: list[str]
) -> None:
    clocks = Clocks()
    settings_env.setattr(recovery_module, "time", clocks)
    recovery, run_id = Recovery("wrk_alive", "cpu", 1), lost_run()
    recovery.pass_once()
    for _ in range(5):
        clocks.run(2.9)
        recovery.pass_once()
    clocks.calendar += 3600
    for _ in range(5):
        recovery.pass_once()
        assert state(run_id) == "running"
        clocks.run(2.9)
    clocks.run(1)
    recovery.pass_once()
    assert (state(run_id), untold) == ("queued", [run_id])


def test_runs_that_always_fail_to_be_told_keep_no_other_from_its_turn(
    settings_env: pytest.MonkeyPatch, untold: list[str]
) -> None:
    settings_env.setattr(recovery_module, "BATCH", 2)
    with open_transaction() as tx:
        for number in range(3):
            new = NewRun("validate_dataset", "cpu", "ann", "ds_1", {}, id=f"run_{number}")
            queue.enqueue(tx, new)
            queue.cancel(tx, f"run_{number}")
    recovery = Recovery("wrk_alive", "cpu", 1)
    for _ in range(3):
        recovery.pass_once()
    assert untold == ["run_0", "run_1", "run_2", "run_0", "run_1"]


def test_a_database_that_goes_away_while_jobs_are_told_ends_the_pass(
    settings_env: pytest.MonkeyPatch,
) -> None:
    def away(run_id: str) -> None:
        raise OperationalError(run_id, None, Exception("the connection was lost"))

    settings_env.setattr(recovery_module, "apply_run", away)
    with open_transaction() as tx:
        run_id = queue.enqueue(tx, NewRun("validate_dataset", "cpu", "ann", "ds_1", {}))
        queue.cancel(tx, run_id or "")
    with pytest.raises(OperationalError):
        Recovery("wrk_alive", "cpu", 1).pass_once()
