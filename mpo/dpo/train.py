"""Direct Preference Optimization on the easy pairs."""

from contextlib import nullcontext
from dataclasses import replace
from functools import partial

from mpo.adapters import open_policy, save_trained, weights_digest
from mpo.checkpoints import handed_over
from mpo.config import DPOStage
from mpo.dpo.curriculum import plan_passes
from mpo.dpo.engine import fit_with_trl
from mpo.dpo.objective import PairObjective
from mpo.dpo.reference import check_reference, pair_logprobs, reference_model
from mpo.dpo.state import DPOTraining, restore, save_pass, save_start
from mpo.errors import EmptySplit, StageInterrupted
from mpo.packed_models import pack_where_exact
from mpo.policies import to_training_device
from mpo.precision import set_precision
from mpo.ragged_pairs import ids_of
from mpo.ranks import ALONE, Ranks, any_of
from mpo.recomputation import recompute_layers
from mpo.records import count_rows, stream_pairs
from mpo.reporter import Reporter, StageTask
from mpo.sharding import in_shards
from mpo.stage_tokens import stage_tokens
from mpo.summaries import write_summary
from mpo.tokenization import EncodingCounts, load_tokenizer, terminators
from mpo.training import STATE_FILE, Training, TrainingOutcome, refuse_lone_row, run
from mpo.training import restore as restore_steps


def train_dpo(task: StageTask, reporter: Reporter, ranks: Ranks = ALONE) -> None:
    """The stage `dpo`: roles policy, reference, data and perhaps base -> model.

    The reference's log-probabilities are computed once, before the first step, and kept in every checkpoint.
    AdamW; the learning rate falls linearly from its peak to 0, without warm-up; gradients are clipped to norm
    1. A curriculum is such a training for each band of gaps, and what came of one is the next one's
    reference. Raises EmptySplit, TooFewRows, InvalidScores, UnusableModel, NoChatTemplate, ReferenceChanged,
    TrainingDiverged, StageInterrupted.
    """
    training, counts = open_training(task, reporter, ranks)
    resume = task.resume
    if resume:
        restore(training, resume)
    while len(training.outcomes) < len(training.passes):
        if training.reference is None:
            compute_reference(training, task, reporter)
        training.outcomes.append(fit(training, replace(task, resume=resume), reporter))
        training.reference, resume = None, None
    if ranks.number > 0:
        return
    save_trained(training.opened, task.one("policy").path, task.output / "model")
    write_summary(task.output, summarize(training) | {"encoding": counts.to_json()})


def open_training(
    task: StageTask, reporter: Reporter, ranks: Ranks = ALONE
) -> tuple[DPOTraining, EncodingCounts]:
    """The training before its first pass, and what encoding did to its pairs."""
    config, source = task.config, task.one("policy").path
    assert isinstance(config, DPOStage)
    tokenizer = load_tokenizer(source)
    data = task.one("data").path
    rows = count_rows(data)
    refuse_lone_row(rows)
    if not rows:
        raise EmptySplit(
            "There is no pair to train on: the data of this stage are empty. Where they are a part of a "
            "split, another threshold, or easy_fraction in its place, fills it.",
            pairs=0,
        )
    passes = plan_passes(stream_pairs(data), config, reporter.warn)
    pairs = stage_tokens(task, "data", tokenizer, ranks)
    pad_id = terminators(source, tokenizer).pad_id
    digest = weights_digest(task.one("reference").path)
    opened = open_policy(task, "policy")
    return DPOTraining(config, opened, pad_id, pairs, passes, digest, ranks), pairs.counts()


def compute_reference(training: DPOTraining, task: StageTask, reporter: Reporter) -> None:
    """Has the reference tell its log-probabilities of the pass's pairs, and hands them over in a checkpoint.

    In all passes but the first the reference is the policy as it stands. Raises UnusableModel,
    StageInterrupted.
    """
    later = bool(training.outcomes)
    opened = training.opened
    chosen = nullcontext(opened.model) if later else reference_model(task, opened, training.reference_sha256)
    try:
        with chosen as model:
            to_training_device(model).eval()
            # As the policy's: with equal weights the first log-ratios are then 0 but for rounding.
            set_precision(model, training.config.precision)
            if training.config.engine == "native":
                pack_where_exact(model, reporter.warn)
            pairs = training.current_pairs()
            training.reference = pair_logprobs(
                model, pairs, training.pad_id, reporter.should_stop, training.ranks
            )
        if not later:  # else it is what was trained here, and its training says so
            check_reference(training.reference, ids_of(pairs))
    except StageInterrupted:
        if later:  # else there is nothing to keep
            hand_over(training, task, reporter)
        raise
    hand_over(training, task, reporter)
    if any(any_of(training.ranks, reporter.should_stop())):
        raise StageInterrupted(step=training.steps_before)


def hand_over(training: DPOTraining, task: StageTask, reporter: Reporter) -> None:
    """A checkpoint, by rank 0, of a training whose current pass has taken no step yet."""
    if training.ranks.number > 0:
        return
    with handed_over(task, reporter, training.steps_before) as folder:
        save_start(training, folder)


def fit(training: DPOTraining, task: StageTask, reporter: Reporter) -> TrainingOutcome:
    """Takes the steps of the current pass that are left. Raises TrainingDiverged, StageInterrupted."""
    if training.config.engine == "trl":
        return fit_with_trl(training, task, reporter)
    assert training.reference is not None
    model = to_training_device(training.opened.model).train()
    set_precision(model, training.config.precision)
    pack_where_exact(model, reporter.warn)
    if training.config.gradient_checkpointing:
        recompute_layers(model, reporter.warn)
    config, pairs = training.pass_config, training.current_pairs()
    objective = PairObjective(pairs, training.reference, config, training.pad_id)
    before_it = dict(training.outcomes[-1].last) if training.outcomes else {}
    before, total = training.steps_before, training.total_steps
    with in_shards(training.opened, training.ranks) as trained:
        steps = Training(trained, objective, config, task.seed, training.ranks, last=before_it)
        if task.resume and (task.resume / STATE_FILE).exists():
            restore_steps(steps, task.resume)
        return run(steps, task, reporter, before=before, total=total, keep=partial(save_pass, training))


def summarize(training: DPOTraining) -> dict[str, object]:
    """The stage's numbers, and with a curriculum those of each pass."""
    config, first, last = training.config, training.outcomes[0].first, training.outcomes[-1].last
    summary: dict[str, object] = {
        "pairs": len(training.pairs),
        "steps": training.steps_before,
        "beta": config.beta,
        "loss": config.loss,
        "reference_sha256": training.reference_sha256,
        "loss_first": first["loss"],
        "loss_last": last["loss"],
        "accuracy_last": last["accuracy"],
        "gap_first": first["gap"],
        "gap_last": last["gap"],
    }
    if not config.curriculum:
        return summary
    passes = [
        {
            "gap_at_least": part.at_least,
            "gap_below": part.below,
            "pairs": len(part.rows),
            "steps": outcome.steps,
            "loss_first": outcome.first["loss"],
            "loss_last": outcome.last["loss"],
        }
        for part, outcome in zip(training.passes, training.outcomes, strict=True)
    ]
    return summary | {"passes": passes}
