"""Claims, fences and publication, on a real Postgres."""

from datetime import timedelta

import pytest
from sqlalchemy import func, select, text, update
from sqlalchemy.exc import IntegrityError

from core import queue
from core.database import Transaction, open_transaction
from core.errors import FenceOver, ForbiddenTransition
from core.logs import bind
from core.states import TRANSITIONS, RunState
from core.tables import Artifact, Job, Metric, Run
from core.work_items import ClaimedRun, NewArtifact, NewRun
from tests.core.jobs import new_job, ready_dataset

pytestmark = pytest.mark.usefixtures("settings_env")

KEY = "k" * 64


def new_run(**changes: object) -> NewRun:
    values: dict[str, object] = {"kind": "dpo", "slot": "gpu", "owner": "ann", "subject_id": "dpo"}
    values["config"] = {}
    return NewRun(**(values | changes))  # type: ignore[arg-type]


def enqueue(**changes: object) -> str:
    with open_transaction() as tx:
        run_id = queue.enqueue(tx, new_run(**changes))
    assert run_id is not None
    return run_id


def claim(slot: str = "gpu") -> ClaimedRun:
    with open_transaction() as tx:
        claimed = queue.claim(tx, slot, "wrk_test")
    assert claimed is not None
    return claimed


def row(run_id: str) -> Run:
    with open_transaction() as tx:
        return tx.session.get_one(Run, run_id)


def let_lease_run_out(run_id: str) -> list[str]:
    with open_transaction() as tx:
        past = func.clock_timestamp() - timedelta(seconds=1)
        tx.session.execute(update(Run).where(Run.id == run_id).values(lease_until=past))
    with open_transaction() as tx:
        return queue.expire_leases(tx)


def artifact(output: str = "model") -> NewArtifact:
    return NewArtifact(output, f"runs/r/1/out/{output}", "0" * 64, 3, [], [], {}, "cpu", 1.0, 1)


def publish(claimed: ClaimedRun) -> None:
    with open_transaction() as tx:
        queue.publish(tx, claimed, [artifact()], {"loss": 0.5})


def test_a_run_is_claimed_once() -> None:
    run_id = enqueue()
    assert claim().id == run_id
    with open_transaction() as tx:
        assert queue.claim(tx, "gpu", "wrk_other") is None


def test_two_claims_at_once_take_two_runs() -> None:
    first, second = enqueue(), enqueue()
    with open_transaction() as one, open_transaction() as other:
        a, b = queue.claim(one, "gpu", "wrk_a"), queue.claim(other, "gpu", "wrk_b")
    assert a is not None
    assert b is not None
    assert {a.id, b.id} == {first, second}


def test_a_slot_takes_its_own_class_of_work_only() -> None:
    enqueue(slot="cpu")
    with open_transaction() as tx:
        assert queue.claim(tx, "gpu", "wrk_a") is None


def test_priority_then_age_then_place_in_the_plan() -> None:
    with open_transaction() as tx:
        now = tx.session.scalar(select(func.clock_timestamp()))
    assert now is not None
    late = enqueue(age=now, rank=5)
    early_rank = enqueue(age=now, rank=1)
    old = enqueue(age=now - timedelta(hours=1), rank=9)
    urgent = enqueue(age=now, rank=9, priority=1)
    assert [claim().id for _ in range(4)] == [urgent, old, early_rank, late]


def test_one_live_run_a_key() -> None:
    enqueue(key=KEY)
    with open_transaction() as tx:
        assert queue.enqueue(tx, new_run(key=KEY)) is None
        assert queue.enqueue(tx, new_run(key=KEY, owner="bob")) is not None


def test_a_late_attempt_cannot_publish() -> None:
    run_id = enqueue(key=KEY)
    frozen = claim()
    assert let_lease_run_out(run_id) == [run_id]
    current = claim()
    assert current.fence == frozen.fence + 1
    with pytest.raises(FenceOver):
        publish(frozen)
    publish(current)
    with pytest.raises(FenceOver):
        publish(frozen)
    with open_transaction() as tx:
        assert tx.session.scalar(select(func.count()).select_from(Artifact)) == 1


def test_a_late_renewal_that_nobody_overtook_succeeds() -> None:
    run_id = enqueue()
    claimed = claim()
    with open_transaction() as tx:
        past = func.clock_timestamp() - timedelta(seconds=60)
        tx.session.execute(update(Run).where(Run.id == run_id).values(lease_until=past))
    with open_transaction() as tx:
        queue.renew(tx, claimed)
    assert let_lease_run_out("run_other") == []


def test_a_cancelled_run_tells_its_worker_at_the_next_renewal() -> None:
    run_id = enqueue()
    claimed = claim()
    with open_transaction() as tx:
        assert queue.cancel(tx, run_id)
    with open_transaction() as tx, pytest.raises(FenceOver) as over:
        queue.renew(tx, claimed)
    assert over.value.facts["state"] == RunState.CANCELLED


def test_three_crashes_without_progress_are_poison() -> None:
    run_id = enqueue()
    for expected in (RunState.QUEUED, RunState.QUEUED, RunState.FAILED):
        claimed = claim()
        with open_transaction() as tx:
            queue.crash(tx, claimed, {"code": "crashed", "message": "died", "output": ""})
        assert row(run_id).state == expected
    assert row(run_id).attempt == 3
    assert (row(run_id).error or {})["code"] == "crashed"


def test_a_checkpoint_is_progress_and_the_next_attempt_starts_from_it() -> None:
    run_id = enqueue()
    first = claim()
    with open_transaction() as tx:
        queue.crash(tx, first, {"code": "crashed", "message": "died", "output": ""})
    second = claim()
    with open_transaction() as tx:
        assert queue.record_checkpoint(tx, second, f"runs/{run_id}/{second.fence}/checkpoints/5", 5) is None
    assert row(run_id).crashes_without_progress == 0
    with open_transaction() as tx:
        replaced = queue.record_checkpoint(tx, second, f"runs/{run_id}/{second.fence}/checkpoints/9", 9)
    assert replaced == f"runs/{run_id}/{second.fence}/checkpoints/5"
    with open_transaction() as tx:
        queue.give_back(tx, second)
    assert (claim().checkpoint or {})["step"] == 9


def test_a_new_run_of_a_key_starts_from_the_checkpoint_of_a_cancelled_one() -> None:
    run_id = enqueue(key=KEY)
    claimed = claim()
    with open_transaction() as tx:
        queue.record_checkpoint(tx, claimed, f"runs/{run_id}/1/checkpoints/7", 7)
        queue.cancel(tx, run_id)
    enqueue(key=KEY)
    assert (claim().checkpoint or {})["step"] == 7


def test_a_paused_run_may_record_one_more_checkpoint_and_nothing_else() -> None:
    run_id = enqueue()
    claimed = claim()
    with open_transaction() as tx:
        queue.pause(tx, run_id)
    with open_transaction() as tx:
        queue.record_checkpoint(tx, claimed, f"runs/{run_id}/1/checkpoints/3", 3)
    with pytest.raises(FenceOver):
        publish(claimed)
    with open_transaction() as tx:
        queue.resume(tx, run_id)
    assert (claim().checkpoint or {})["step"] == 3


def test_a_graceful_return_counts_as_no_attempt() -> None:
    enqueue()
    claimed = claim()
    with open_transaction() as tx:
        queue.give_back(tx, claimed)
    assert claim().attempt == 1


def test_resuming_what_is_not_paused_is_refused() -> None:
    run_id = enqueue()
    with open_transaction() as tx, pytest.raises(ForbiddenTransition):
        queue.resume(tx, run_id)


def test_a_resumed_attempt_overwrites_the_metrics_of_the_steps_it_repeats() -> None:
    run_id = enqueue()
    claimed = claim()
    with open_transaction() as tx:
        queue.record_progress(tx, claimed, {"step": 1}, {1: {"loss": 2.0}}, "")
    with open_transaction() as tx:
        queue.record_progress(tx, claimed, {"step": 2}, {1: {"loss": 3.0}, 2: {"loss": 1.0}}, "log")
    with open_transaction() as tx:
        of_run = select(Metric.values).where(Metric.run_id == run_id).order_by(Metric.step)
        assert list(tx.session.scalars(of_run)) == [{"loss": 3.0}, {"loss": 1.0}]


def test_the_database_lets_no_fence_fall_and_no_job_go_on_after_its_end() -> None:
    with open_transaction() as tx:
        tx.session.execute(update(Run).where(Run.id == enqueue()).values(fence=3))
        tx.session.execute(update(Run).values(fence=3))
    with pytest.raises(IntegrityError, match="its fence would go back"), open_transaction() as tx:
        tx.session.execute(update(Run).values(fence=2))
    job_id = new_job(ready_dataset())
    with open_transaction() as tx:
        tx.session.execute(update(Job).values(status="cancelled"))
        tx.session.execute(update(Job).values(status="cancelled", name="again"))
    with pytest.raises(IntegrityError, match=f"{job_id}: its end would go back"), open_transaction() as tx:
        tx.session.execute(update(Job).values(status="running"))


@pytest.mark.parametrize("source", list(RunState))
@pytest.mark.parametrize("target", list(RunState))
def test_the_database_allows_the_same_transitions_as_the_code(source: RunState, target: RunState) -> None:
    run_id = enqueue()

    def move(tx: Transaction, state: RunState) -> None:
        tx.session.execute(
            text("UPDATE runs SET state = :state, lease_until = clock_timestamp() WHERE id = :id"),
            {"state": state.value, "id": run_id},
        )

    ways = {RunState.QUEUED: [], RunState.RUNNING: [RunState.RUNNING], RunState.PAUSED: [RunState.PAUSED]}
    for state in ways.get(source, [RunState.RUNNING, source]):
        with open_transaction() as tx:
            move(tx, state)
    if target in TRANSITIONS[source] or target == source:
        with open_transaction() as tx:
            move(tx, target)
    else:
        with open_transaction() as tx, pytest.raises(IntegrityError):
            move(tx, target)


def test_the_checkpoint_that_a_paused_run_replaces_is_kept_for_who_started_from_it() -> None:
    run_id = enqueue(key=KEY)
    claimed = claim()
    with open_transaction() as tx:
        queue.record_checkpoint(tx, claimed, f"runs/{run_id}/1/checkpoints/1", 1)
    with open_transaction() as tx:
        queue.pause(tx, run_id)
    enqueue(key=KEY)
    with open_transaction() as tx:
        assert queue.record_checkpoint(tx, claimed, f"runs/{run_id}/1/checkpoints/2", 2) is None


def test_an_attempt_s_wait_begins_anew_when_its_run_is_queued_again() -> None:
    run_id = enqueue()
    first = claim()
    with open_transaction() as tx:
        queue.give_back(tx, first)
    second = claim()
    with open_transaction() as tx:
        queue.crash(tx, second, {"code": "crashed"})
    third = claim()
    let_lease_run_out(run_id)
    fourth = claim()
    moments = [m for c in (first, second, third, fourth) for m in (c.queued_at, c.claimed_at)]
    assert moments == sorted(set(moments))


def test_a_run_carries_the_request_that_caused_it() -> None:
    with bind(request_id="req_cause"):
        enqueue()
    assert claim().request_id == "req_cause"
    enqueue()
    assert claim().request_id is None


def test_a_new_run_of_a_key_starts_from_the_furthest_checkpoint_whichever_run_is_newer() -> None:
    enqueue(key=KEY)
    paused = claim()
    with open_transaction() as tx:
        queue.pause(tx, paused.id)
    enqueue(key=KEY)
    later = claim()
    with open_transaction() as tx:
        queue.record_checkpoint(tx, later, f"runs/{later.id}/1/checkpoints/1", 1)
    with open_transaction() as tx:
        queue.record_checkpoint(tx, paused, f"runs/{paused.id}/1/checkpoints/10", 10)
    with open_transaction() as tx:
        queue.cancel(tx, later.id)
    enqueue(key=KEY)
    assert (claim().checkpoint or {})["step"] == 10


def test_leases_expire_without_waiting_for_a_run_that_somebody_holds() -> None:
    held, free = enqueue(), enqueue()
    for _ in range(2):
        claim()
    with open_transaction() as tx:
        past = func.clock_timestamp() - timedelta(seconds=1)
        tx.session.execute(update(Run).values(lease_until=past))
    with open_transaction() as renewing, open_transaction() as recovering:
        renewing.session.execute(select(Run.id).where(Run.id == held).with_for_update())
        assert queue.expire_leases(recovering) == [free]
