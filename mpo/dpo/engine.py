"""TRL's DPOTrainer on our token ids and our reference's log-probabilities."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.state import DPOTraining, save_pass
from mpo.reporter import Reporter, StageTask
from mpo.tokenization import EncodedPair
from mpo.training import TrainingOutcome
from mpo.trl_engine import QuietTrainer, engine_config, padding_tokenizer, run_trainer, settings_kept

TRAINER_FILE = "trainer_state.json"
"""What a checkpoint holds once TRL's trainer has taken a step."""


class PairDPOTrainer(QuietTrainer, DPOTrainer):
    """DPOTrainer that takes rows as they are: encoded, and with the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        """TRL would encode prompt and response together, so that the two sides could see other prompts."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: object) -> Dataset:
        """The rows hold them already."""
        return dataset


def loss_options(config: DPOStage) -> dict[str, object]:
    """TRL's names of a loss. It has no cdpo, but cdpo = 2(1-ε)·sigmoid - (1-2ε)·robust, ε the flip rate."""
    if config.loss == "cdpo":
        weights = [2 * (1 - config.flip_rate), -(1 - 2 * config.flip_rate)]
        options: dict[str, object] = {"loss_type": ["sigmoid", "robust"], "loss_weights": weights}
    else:
        options = {"loss_type": [config.loss]}
    return options | {"beta": config.beta, "label_smoothing": config.flip_rate}


def dpo_trainer(
    policy: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    reference: PairLogprobs,
    tokenizer: PreTrainedTokenizerBase,
    task: StageTask,
) -> PairDPOTrainer:
    """The trainer of a policy. reference: log-probabilities of every pair; tokenizer: for the padding id.

    What the policy trains is what requires gradients: of adapters over a base, the trainer knows nothing.
    """
    assert isinstance(task.config, DPOStage)
    rows = Dataset.from_dict(
        {
            "prompt_ids": [pair.prompt_ids for pair in pairs],
            "chosen_ids": [pair.chosen_ids for pair in pairs],
            "rejected_ids": [pair.rejected_ids for pair in pairs],
            "ref_chosen_logps": reference.chosen.tolist(),
            "ref_rejected_logps": reference.rejected.tolist(),
        }
    )
    args = engine_config(
        DPOConfig, task, len(pairs), precompute_ref_log_probs=True, **loss_options(task.config)
    )
    return PairDPOTrainer(model=policy, args=args, train_dataset=rows, processing_class=tokenizer)


def fit_with_trl(training: DPOTraining, task: StageTask, reporter: Reporter) -> TrainingOutcome:
    """Takes the steps of the current pass that are left. Raises TrainingDiverged, StageInterrupted."""
    assert training.reference is not None
    policy, pairs = training.opened.model, training.current_pairs()
    resume = task.resume if task.resume and (task.resume / TRAINER_FILE).exists() else None
    own = replace(task, config=training.pass_config, resume=resume)
    tokenizer = padding_tokenizer(task.one("policy").path, training.pad_id)
    with settings_kept(policy):
        return run_trainer(
            dpo_trainer(policy, pairs, training.reference, tokenizer, own),
            pairs,
            own,
            reporter,
            before=training.steps_before,
            total=training.total_steps,
            keep=partial(save_pass, training),
        )
