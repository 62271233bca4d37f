"""The keeper of a lease writes what it can, and nothing that it cannot write keeps it from renewing."""

import math
from typing import Any

import pytest
from sqlalchemy import select

from core import queue
from core.database import open_session, open_transaction
from core.tables import Metric, Run
from core.work_items import ClaimedRun, NewRun
from workers.child_protocol import Progress, Warned
from workers.lease import LeaseKeeper

pytestmark = pytest.mark.usefixtures("settings_env")


@pytest.fixture
def claimed(settings_env: pytest.MonkeyPatch) -> ClaimedRun:
    with open_transaction() as tx:
        queue.enqueue(tx, NewRun(kind="dpo", slot="gpu", owner="ann", subject_id="dpo", config={}))
        found = queue.claim(tx, "gpu", "wrk_test")
    assert found is not None
    return found


def metrics_of(run: ClaimedRun) -> dict[int, dict[str, Any]]:
    with open_session() as session:
        rows = session.execute(select(Metric.step, Metric.values).where(Metric.run_id == run.id))
        return {row.step: row.values for row in rows}


def test_a_metric_that_is_no_number_is_left_out_and_the_rest_is_kept(claimed: ClaimedRun) -> None:
    keeper = LeaseKeeper(claimed, lambda: "")
    keeper.note(Progress(1, 9, {"loss": math.nan, "reward": 0.5}))
    keeper.note(Progress(2, 9, {"loss": math.inf, "reward": 0.75}))
    keeper.flush()
    assert metrics_of(claimed) == {1: {"reward": 0.5}, 2: {"reward": 0.75}}


def test_what_the_database_refuses_is_dropped_and_later_reports_are_written(claimed: ClaimedRun) -> None:
    log = ["a log with a \0"]
    keeper = LeaseKeeper(claimed, lambda: log[0])
    keeper.note(Warned("\0"))
    keeper.note(Progress(1, 9, {"loss": 1.0}))
    keeper.flush()
    log[0] = "a log"
    keeper.note(Progress(2, 9, {"loss": 0.5}))
    keeper.flush()
    with open_session() as session:
        progress = session.get_one(Run, claimed.id).progress
    assert progress is not None
    assert progress["step"] == 2
