"""TRL's DPOTrainer on our token ids and our reference's log-probabilities."""

from collections.abc import Sequence

from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from mpo.config import DPOStage
from mpo.dpo.loss import PairLogprobs
from mpo.reporter import Reporter, StageTask
from mpo.tokenization import EncodedPair
from mpo.trl_engine import QuietTrainer, TrainingOutcome, engine_config, run_trainer, settings_kept


class PairDPOTrainer(QuietTrainer, DPOTrainer):
    """DPOTrainer that takes rows as they are: encoded, and with the reference's log-probabilities."""

    def _prepare_dataset(self, dataset: Dataset, *args: object) -> Dataset:
        """TRL would encode prompt and response together, so that the two sides could see other prompts."""
        return dataset

    def _precompute_ref_logps(self, dataset: Dataset, *args: object) -> Dataset:
        """The rows hold them already."""
        return dataset


def dpo_trainer(
    policy: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    reference: PairLogprobs,
    tokenizer: PreTrainedTokenizerBase,
    task: StageTask,
) -> PairDPOTrainer:
    """The trainer of a policy. reference: log-probabilities of every pair; tokenizer: for the padding id."""
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
        DPOConfig,
        task,
        len(pairs),
        beta=task.config.beta,
        loss_type=[task.config.loss],
        precompute_ref_log_probs=True,
    )
    return PairDPOTrainer(model=policy, args=args, train_dataset=rows, processing_class=tokenizer)


def fit_policy(
    policy: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    reference: PairLogprobs,
    tokenizer: PreTrainedTokenizerBase,
    task: StageTask,
    reporter: Reporter,
) -> TrainingOutcome:
    """Trains the policy in place on pairs. Raises TrainingDiverged, StageInterrupted."""
    lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    with settings_kept(policy):
        trainer = dpo_trainer(policy, pairs, reference, tokenizer, task)
        return run_trainer(trainer, lengths, task, reporter)
