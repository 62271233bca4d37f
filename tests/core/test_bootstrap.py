"""What a deployment is told about itself before it starts."""

import pytest

from core import queue
from core.bootstrap import end_leases
from core.database import open_transaction
from core.errors import FenceOver
from core.tables import Run
from core.work_items import NewRun

pytestmark = pytest.mark.usefixtures("settings_env")


def test_where_nobody_works_a_run_waits_for_no_lease_and_its_old_worker_is_shut_out() -> None:
    new = NewRun(kind="validate_dataset", slot="cpu", owner="ann", subject_id="ds_1", config={}, inputs={})
    with open_transaction() as tx:
        queue.enqueue(tx, new)
    with open_transaction() as tx:
        first = queue.claim(tx, "cpu", "wrk_gone")
    assert first is not None
    with open_transaction() as tx:
        assert end_leases(tx) == [first.id]
    with open_transaction() as tx:
        run = tx.session.get_one(Run, first.id)
        assert (run.state, run.attempt, run.leases_lost_without_progress) == ("queued", 2, 1)
    with open_transaction() as tx:
        second = queue.claim(tx, "cpu", "wrk_new")
    assert second is not None
    with pytest.raises(FenceOver), open_transaction() as tx:
        queue.renew(tx, first)
    with open_transaction() as tx:
        assert end_leases(tx) == [second.id]
        assert end_leases(tx) == []
