"""TRL's RewardTrainer on our token ids."""

from collections.abc import Sequence
from typing import Any

from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput
from trl.trainer.reward_config import RewardConfig
from trl.trainer.reward_trainer import RewardTrainer

from mpo.batches import PaddedBatch
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.score import end_scores
from mpo.tokenization import EncodedPair
from mpo.training import TrainingOutcome
from mpo.trl_engine import QuietTrainer, engine_config, run_trainer, settings_kept


class _EndReader:
    """A reward model's forward that finds the last token by the mask, as our scorer does.

    transformers' own looks for the last id that is not the padding's, which a response may end with.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model

    def __call__(
        self, input_ids: Tensor, attention_mask: Tensor, **ignored: object
    ) -> SequenceClassifierOutput:
        scores = end_scores(self.model, PaddedBatch(input_ids, attention_mask.bool()))
        return SequenceClassifierOutput(logits=scores.unsqueeze(-1))


class PairRewardTrainer(QuietTrainer, RewardTrainer):
    """RewardTrainer that reads rewards where our scorer does."""

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """TRL's loss on our reading of the model."""
        return super().compute_loss(_EndReader(model), inputs, *args, **kwargs)


def reward_trainer(
    model: PreTrainedModel, pairs: Sequence[EncodedPair], tokenizer: PreTrainedTokenizerBase, task: StageTask
) -> PairRewardTrainer:
    """The trainer of a reward model on pairs; tokenizer gives the padding id alone."""
    rows = Dataset.from_dict(
        {
            "chosen_ids": [pair.prompt_ids + pair.chosen_ids for pair in pairs],
            "rejected_ids": [pair.prompt_ids + pair.rejected_ids for pair in pairs],
        }
    )
    return PairRewardTrainer(
        model=model,
        args=engine_config(RewardConfig, task, len(pairs)),
        train_dataset=rows,
        processing_class=tokenizer,
    )


def fit_reward_model(
    model: PreTrainedModel,
    pairs: Sequence[EncodedPair],
    tokenizer: PreTrainedTokenizerBase,
    task: StageTask,
    reporter: Reporter,
) -> TrainingOutcome:
    """Trains the model in place on pairs. Raises TrainingDiverged, StageInterrupted."""
    lengths = [len(p.prompt_ids) + max(len(p.chosen_ids), len(p.rejected_ids)) for p in pairs]
    with settings_kept(model):
        return run_trainer(reward_trainer(model, pairs, tokenizer, task), lengths, task, reporter)
