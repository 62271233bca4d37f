"""Models that an evaluation can be asked of, and a worker's work on one in the test's own process."""

from pathlib import Path
from typing import Any

from core import queue
from core.aftermath import apply_run, report_progress
from core.bootstrap import register_model
from core.database import open_transaction
from core.storage import storage
from core.work_items import ClaimedRun
from mpo.config import EvaluateStage
from mpo.evaluation import evaluate
from mpo.reporter import StageInput, StageTask
from tests.app.jobs.factories import make_dataset
from tests.mpo.tiny import RecordingReporter, word_pairs, write_policy, write_reward_model
from workers.child_protocol import Done
from workers.stage_inputs import fetch, store

LENGTHS = {"max_new_tokens": 6, "max_prompt_tokens": 16, "max_response_tokens": 8}
POLICIES, REWARD_MODELS = ("first", "second", "third"), ("judge", "scorer")


def write_models(folder: Path) -> Path:
    """Folders of random policies of one vocabulary, and of two reward models."""
    for seed, name in enumerate(POLICIES):
        write_policy(folder / name, seed)
    for seed, name in enumerate(REWARD_MODELS):
        write_reward_model(folder / name, folder / POLICIES[0], seed)
    return folder


def register_models(folder: Path) -> None:
    """Make them base models."""
    with open_transaction() as tx:
        for name in (*POLICIES, *REWARD_MODELS):
            register_model(tx, folder / name, name=name)


def held_out(folder: Path, count: int = 12) -> str:
    """Id of a ready dataset of that many pairs, each with a prompt of its own."""
    return make_dataset(folder, word_pairs(count))


def asked(dataset: str, **changes: Any) -> dict[str, Any]:
    """A request."""
    body = {"models": ["first", "second"], "judge": "judge", "dataset": dataset, "prompts": 8, **LENGTHS}
    return body | changes


def claim_gpu() -> ClaimedRun:
    """Claim the best run of the gpu slot, and tell its subject."""
    with open_transaction() as tx:
        claimed = queue.claim(tx, "gpu", "wrk_test")
    assert claimed is not None
    apply_run(claimed.id)
    return claimed


def perform(run_id: str, scratch: Path) -> None:
    """What the executor does, without its child: claim, fetch, evaluate, store, publish, carry over."""
    claimed = claim_gpu()
    assert claimed.id == run_id
    task = fetch(claimed, scratch / claimed.id, storage())
    inputs = {role: tuple(StageInput(i.name, i.path) for i in found) for role, found in task.inputs.items()}
    config = EvaluateStage.model_validate(claimed.config)
    reporter = RecordingReporter()
    evaluate(StageTask(config, inputs, task.output, task.seed), reporter)
    step, total, _ = reporter.steps[-1]
    progress = {"step": step, "total_steps": total, "fraction": step / total, "eta_seconds": 0.0}
    artifacts, summary = store(claimed, task, Done(1), 1.0, storage())
    with open_transaction() as tx:
        queue.record_progress(tx, claimed, progress, {}, "")
    report_progress(claimed.id, reporter.warnings)
    with open_transaction() as tx:
        queue.publish(tx, claimed, artifacts, summary)
    apply_run(claimed.id)
