"""Direct Preference Optimization on the easy pairs."""

from mpo.config import DPOStage
from mpo.dpo.engine import fit_policy
from mpo.dpo.reference import pair_logprobs
from mpo.errors import EmptySplit
from mpo.policies import load_policy, save_model, to_training_device
from mpo.records import read_pairs
from mpo.reporter import Reporter, StageTask
from mpo.summaries import write_summary
from mpo.tokenization import encode_pairs, load_tokenizer, terminators
from mpo.trl_engine import padding_tokenizer


def train_dpo(task: StageTask, reporter: Reporter) -> None:
    """The stage `dpo`: roles policy, reference and data -> model.

    The reference's log-probabilities are computed once; it is not in memory while the policy trains. AdamW;
    the learning rate falls linearly from its peak to 0, without warm-up; gradients are clipped to norm 1.
    Raises UnusableModel, NoChatTemplate, EmptySplit, TrainingDiverged, StageInterrupted.
    """
    config, source = task.config, task.one("policy").path
    assert isinstance(config, DPOStage)
    tokenizer = load_tokenizer(source)
    pairs, counts = encode_pairs(
        read_pairs(task.one("data").path),
        tokenizer,
        max_prompt_tokens=config.max_prompt_tokens,
        max_response_tokens=config.max_response_tokens,
    )
    if not pairs:
        raise EmptySplit("There are no easy pairs to train on.")
    pad_id = terminators(source, tokenizer).pad_id
    reference = to_training_device(load_policy(task.one("reference").path)).eval()
    reference_logprobs = pair_logprobs(reference, pairs, pad_id)
    del reference
    policy = load_policy(source)
    outcome = fit_policy(policy, pairs, reference_logprobs, padding_tokenizer(source, pad_id), task, reporter)
    save_model(policy, source, task.output / "model")
    write_summary(
        task.output,
        {
            "pairs": len(pairs),
            "steps": outcome.steps,
            "beta": config.beta,
            "loss_first": outcome.first["loss"],
            "loss_last": outcome.last["loss"],
            "accuracy_last": outcome.last["accuracy"],
            "gap_first": outcome.first["gap"],
            "gap_last": outcome.last["gap"],
            "encoding": counts.to_json(),
        },
    )
