"""An evaluation follows its run, whoever carries the run's state over, and how often."""

from typing import Any

import pytest

from core import queue
from core.aftermath import apply_run, report_progress, unapplied_runs
from core.database import open_transaction
from core.ids import new_id
from core.tables import Evaluation, Run
from core.work_items import ClaimedRun, NewRun
from tests.factories import evaluation_request

pytestmark = pytest.mark.usefixtures("settings_env")

REPORT = {"prompts": 1}


def queued(**changes: Any) -> str:
    """Id of an evaluation whose run is queued."""
    made = Evaluation(
        id=new_id("evaluation"), owner="ann", models=["a"], request=evaluation_request("ds_any")
    )
    with open_transaction() as tx:
        made.run_id = queue.enqueue(tx, NewRun("evaluate", "gpu", "ann", made.id, {}, **changes))
        tx.session.add(made)
    return made.id


def claim() -> ClaimedRun:
    with open_transaction() as tx:
        found = queue.claim(tx, "gpu", "wrk_test")
    assert found is not None
    return found


def row(evaluation_id: str) -> Evaluation:
    with open_transaction() as tx:
        return tx.session.get_one(Evaluation, evaluation_id)


def test_what_was_published_and_not_applied_is_found_and_applied_once() -> None:
    made, run = queued(), claim()
    with open_transaction() as tx:
        queue.publish(tx, run, [], REPORT)
    # Here the worker dies: recovery finds it.
    assert row(made).status == "queued"
    with open_transaction() as tx:
        assert unapplied_runs(tx, 10) == [run.id]
    apply_run(run.id)
    first = row(made)
    assert (first.status, first.report) == ("succeeded", REPORT)
    assert first.finished_at is not None
    apply_run(run.id)
    assert row(made).version == first.version
    with open_transaction() as tx:
        assert unapplied_runs(tx, 10) == []


def test_a_run_that_is_given_back_waits_again() -> None:
    made, run = queued(), claim()
    apply_run(run.id)
    assert (row(made).status, row(made).started_at is not None) == ("running", True)
    with open_transaction() as tx:
        queue.give_back(tx, run)
    apply_run(run.id)
    assert (row(made).status, row(made).finished_at) == ("queued", None)
    apply_run(claim().id)
    assert row(made).status == "running"


def test_a_crash_that_cannot_be_mended_fails_the_evaluation() -> None:
    made = queued()
    for _ in range(queue.POISON_CRASHES):
        run = claim()
        with open_transaction() as tx:
            queue.crash(tx, run, {"code": "crashed", "message": "It died.", "output": "a trace"})
        apply_run(run.id)
    assert (row(made).status, row(made).error) == ("failed", {"code": "crashed", "message": "It died."})


def test_a_job_s_stage_of_that_kind_is_no_evaluation() -> None:
    made = queued(job_id=new_id("job"))
    run = claim()
    report_progress(run.id, ["of the job"])
    apply_run(run.id)
    assert (row(made).status, row(made).warnings) == ("queued", [])
    with open_transaction() as tx:
        assert tx.session.get_one(Run, run.id).state == "running"


def test_what_is_reported_too_late_changes_nothing() -> None:
    made, run = queued(), claim()
    with open_transaction() as tx:
        queue.fail(tx, run, {"code": "internal_error", "message": "m", "output": ""})
    apply_run(run.id)
    ended = row(made)
    report_progress(run.id, ["late"])
    assert (row(made).warnings, row(made).version) == ([], ended.version)
