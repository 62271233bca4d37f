"""How jobs move: order, cache, shared work, pauses, failure and cancellation, on a real Postgres."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from sqlalchemy import func, select

from core import aftermath, queue
from core.advance import advance_job
from core.aftermath import apply_run, report_progress, unapplied_runs
from core.database import Transaction, open_transaction
from core.job_changes import cancel_job, pause_job, resume_job
from core.job_rows import lock_job, stages_of
from core.tables import Event, Job, Run, StageRow
from core.work_items import ClaimedRun
from tests.core.jobs import (
    claim_next,
    finish,
    job_row,
    new_job,
    ready_dataset,
    run_row,
    run_to_the_end,
    stage_rows,
)

pytestmark = pytest.mark.usefixtures("settings_env")

ALL_STAGES = 11


def cancel(job_id: str) -> None:
    with open_transaction() as tx:
        job = lock_job(tx, job_id)
        assert job is not None
        cancel_job(tx, job, stages_of(tx, job))
    with open_transaction() as tx:
        left = unapplied_runs(tx, 100)
    for run_id in left:
        apply_run(run_id)


def resume(job_id: str) -> None:
    with open_transaction() as tx:
        job = lock_job(tx, job_id)
        assert job is not None
        resume_job(tx, job, stages_of(tx, job))
        advance_job(tx, job_id)


def test_a_job_runs_its_stages_in_order_and_the_histogram_comes_early() -> None:
    job_id = new_job(ready_dataset())
    order = run_to_the_end()
    assert order == [
        "hold_out",
        "reward_model_fold_1",
        "reward_model_fold_2",
        "score",
        "split",
        "sft",
        "reward_model",
        "dpo",
        "ppo",
        "judge",
        "evaluate",
    ]
    assert job_row(job_id).status == "succeeded"


def test_the_same_job_again_is_cached_whole() -> None:
    dataset = ready_dataset()
    new_job(dataset)
    run_to_the_end()
    again = new_job(dataset)
    assert job_row(again).status == "succeeded"
    assert all(stage.cached for stage in stage_rows(again).values())
    assert claim_next() is None


def test_two_jobs_at_once_share_every_run() -> None:
    dataset = ready_dataset()
    first, second = new_job(dataset), new_job(dataset)
    assert len(run_to_the_end()) == ALL_STAGES
    assert job_row(first).status == job_row(second).status == "succeeded"


def test_cancelling_one_of_two_jobs_leaves_the_other_to_end_as_if_alone() -> None:
    dataset = ready_dataset()
    first, second = new_job(dataset), new_job(dataset)
    claimed = claim_next()
    assert claimed is not None
    cancel(first)
    assert run_row(claimed.id).state == "cancelled"
    assert len(run_to_the_end()) == ALL_STAGES
    assert job_row(first).status == "cancelled"
    assert job_row(second).status == "succeeded"


def test_advancing_twice_changes_nothing() -> None:
    job_id = new_job(ready_dataset())
    claim_next()
    before = job_row(job_id)
    with open_transaction() as tx:
        advance_job(tx, job_id)
    after = job_row(job_id)
    assert (after.status, after.event_counter) == (before.status, before.event_counter)


def test_a_job_waits_for_its_dataset() -> None:
    new_job(ready_dataset(status="validating"))
    assert claim_next() is None


def test_an_invalid_dataset_fails_the_job() -> None:
    job_id = new_job(ready_dataset(status="invalid"))
    assert job_row(job_id).status == "failed"
    assert (job_row(job_id).error or {})["code"] == "dataset_invalid"


def test_a_failed_stage_fails_the_job_and_stops_its_other_runs() -> None:
    job_id = new_job(ready_dataset())
    hold_out = claim_next()
    assert hold_out is not None
    finish(hold_out)
    fold = claim_next()
    assert fold is not None
    with open_transaction() as tx:
        queue.fail(tx, fold, {"code": "training_diverged", "message": "loss is NaN", "output": None})
    apply_run(fold.id)
    job = job_row(job_id)
    assert job.status == "failed"
    assert job.error == {
        "code": "training_diverged",
        "message": "loss is NaN",
        "output": None,
        "stage": "reward_model_fold_1",
    }
    assert claim_next() is None


def test_a_pause_after_the_split_holds_what_depends_on_it_and_no_more() -> None:
    job_id = new_job(ready_dataset(), pause_after=["split"])
    done = run_to_the_end()
    assert set(done) == {
        "hold_out",
        "reward_model_fold_1",
        "reward_model_fold_2",
        "score",
        "split",
        "sft",
        "reward_model",
        "judge",
    }
    assert job_row(job_id).status == "paused"
    resume(job_id)
    assert run_to_the_end() == ["dpo", "ppo", "evaluate"]
    assert job_row(job_id).status == "succeeded"


def score_weakly(method: dict[str, object], pause: dict[str, str] | None = None) -> str:
    job_id = new_job(ready_dataset(), method=method)
    run_to_the_end(stop_before="score")
    with open_transaction() as tx:
        tx.session.get_one(Job, job_id).pause = pause
        of_score = select(Run).where(Run.kind == "score")
        run = tx.session.scalars(of_score).one()
        names = ClaimedRun.__dataclass_fields__
        claimed = ClaimedRun(**{name: getattr(run, name) for name in names})
    finish(claimed, weak=True, weak_reason="accuracy 0.51 [0.45, 0.57]")
    return job_id


def test_a_weak_reward_model_pauses_the_job_by_default_and_a_resume_accepts_it() -> None:
    job_id = score_weakly({"type": "mpo", "score": {"folds": 2}})
    run_to_the_end()
    job = job_row(job_id)
    assert job.status == "paused"
    assert (job.pause or {})["reason"] == "weak_reward_model"
    assert stage_rows(job_id)["split"].status == "waiting"
    resume(job_id)
    assert run_to_the_end()[0] == "split"
    assert job_row(job_id).status == "succeeded"


def test_a_weak_reward_model_holds_a_job_that_pauses_for_another_reason_already() -> None:
    earlier = {"reason": "pause_after", "stage": "reward_model", "message": "look at it"}
    job_id = score_weakly({"type": "mpo", "score": {"folds": 2}}, pause=earlier)
    run_to_the_end()
    assert stage_rows(job_id)["split"].status == "waiting"
    assert job_row(job_id).pause == earlier
    resume(job_id)
    run_to_the_end()
    assert stage_rows(job_id)["split"].status == "waiting"
    assert (job_row(job_id).pause or {})["reason"] == "weak_reward_model"


def test_a_stage_whose_artifacts_are_gone_when_its_run_is_applied_is_done_again() -> None:
    job_id = new_job(ready_dataset())
    claimed = claim_next()
    assert claimed is not None
    with open_transaction() as tx:
        queue.publish(tx, claimed, [], {})
    apply_run(claimed.id)
    assert stage_rows(job_id)["hold_out"].status == "queued"
    assert len(run_to_the_end()) == ALL_STAGES


def test_a_weak_reward_model_fails_the_job_that_asks_for_it() -> None:
    job_id = score_weakly({"type": "mpo", "score": {"folds": 2}, "reward_model": {"on_weak": "fail"}})
    assert (job_row(job_id).error or {})["code"] == "weak_reward_model"


def test_a_weak_reward_model_may_be_only_worth_a_warning() -> None:
    job_id = score_weakly({"type": "mpo", "score": {"folds": 2}, "reward_model": {"on_weak": "warn"}})
    run_to_the_end()
    assert job_row(job_id).status == "succeeded"
    with open_transaction() as tx:
        warnings = tx.session.scalars(select(Event.message).where(Event.type == "stage.warning")).all()
    assert warnings == ["accuracy 0.51 [0.45, 0.57]"]


def test_a_user_s_pause_stops_the_run_and_a_resume_goes_on_from_its_checkpoint() -> None:
    job_id = new_job(ready_dataset())
    claimed = claim_next()
    assert claimed is not None
    with open_transaction() as tx:
        queue.record_checkpoint(tx, claimed, f"runs/{claimed.id}/1/checkpoints/4", 4)
    with open_transaction() as tx:
        job = lock_job(tx, job_id)
        assert job is not None
        pause_job(tx, job, stages_of(tx, job))
    assert job_row(job_id).status == "paused"
    assert claim_next() is None
    resume(job_id)
    again = claim_next()
    assert again is not None
    assert (again.checkpoint or {})["step"] == 4


def test_both_inputs_published_at_the_same_instant_enqueue_their_dependent_once() -> None:
    # score needs both folds; each publisher advances the job in its own transaction.
    dataset = ready_dataset()
    for seed in range(10):
        new_job(dataset, seed=seed)
        hold_out = claim_next()
        assert hold_out is not None
        finish(hold_out)
        folds = [claim_next(), claim_next()]
        both = Barrier(2)

        def publish(claimed: ClaimedRun | None, both: Barrier = both) -> None:
            assert claimed is not None
            both.wait()
            finish(claimed)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(publish, folds))
        with open_transaction() as tx:
            scores = select(func.count()).select_from(Run).where(Run.kind == "score", Run.seed == seed)
            assert tx.session.scalar(scores) == 1
        run_to_the_end()


def test_recovery_finds_a_finished_run_that_never_reached_its_job() -> None:
    job_id = new_job(ready_dataset())
    claimed = claim_next()
    assert claimed is not None
    with open_transaction() as tx:
        queue.publish(tx, claimed, [], {})
    with open_transaction() as tx:
        assert unapplied_runs(tx, 10) == [claimed.id]
    assert stage_rows(job_id)["hold_out"].status == "running"


def test_who_waits_for_a_run_of_a_job_that_fails_is_told_at_once() -> None:
    dataset_id = ready_dataset()
    failing, waiting = new_job(dataset_id), new_job(dataset_id)
    first = claim_next()
    assert first is not None
    finish(first)
    fold = claim_next()
    assert fold is not None
    with open_transaction() as tx:
        queue.fail(tx, fold, {"code": "training_diverged", "message": "loss is NaN", "output": None})
    other = stage_rows(waiting)["sft"].run_id
    assert other == stage_rows(failing)["sft"].run_id
    # Of the second job, nothing waits for the run that failed: it waits for another one of the first job.
    with open_transaction() as tx:
        tx.session.get_one(StageRow, (waiting, fold.subject_id)).run_id = None
    apply_run(fold.id)
    assert run_row(other or "").state == "cancelled"
    assert stage_rows(waiting)["sft"].run_id not in (None, other)
    with open_transaction() as tx:
        assert unapplied_runs(tx, 10) == []


def test_a_job_that_cannot_be_advanced_keeps_no_other_from_being_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dataset_id = ready_dataset()
    broken, sound = new_job(dataset_id), new_job(dataset_id)
    claimed = claim_next()
    assert claimed is not None
    monkeypatch.setattr(aftermath, "advance_job", _refuse(broken))
    with pytest.raises(KeyError, match=broken):
        finish(claimed)
    assert stage_rows(sound)["hold_out"].status == "succeeded"
    assert stage_rows(broken)["hold_out"].status == "running"
    with open_transaction() as tx:
        assert unapplied_runs(tx, 10) == [claimed.id]
        assert unapplied_runs(tx, 10, after=claimed.id) == []


def _refuse(job_id: str) -> Callable[[Transaction, str], None]:
    def advance(tx: Transaction, advanced: str) -> None:
        if advanced == job_id:
            raise KeyError(job_id)
        advance_job(tx, advanced)

    return advance


def test_event_ids_rise_by_one_within_a_job() -> None:
    job_id = new_job(ready_dataset())
    claimed = claim_next()
    assert claimed is not None
    with open_transaction() as tx:
        queue.record_progress(tx, claimed, {"step": 1, "total_steps": 2}, {1: {"loss": 1.0}}, "")
    report_progress(claimed.id, ["look at this"])
    run_to_the_end()
    with open_transaction() as tx:
        ids = tx.session.scalars(select(Event.id).where(Event.job_id == job_id).order_by(Event.id)).all()
    assert list(ids) == list(range(1, len(ids) + 1))
