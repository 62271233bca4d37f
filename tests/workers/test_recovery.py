"""Recovery's own clock, on the test's Postgres."""

import pytest

from core import queue
from core.database import open_transaction
from core.tables import Run
from core.work_items import NewRun
from experiments.chaos.stack import wait_until
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
