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
from mpo.config import RewardModelStage
from mpo.errors import InvalidSpec
from mpo.reporter import Reporter, StageTask
from mpo.reward_model.objective import PairRows
from mpo.reward_model.score import end_scores
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


def refuse_what_trl_lacks(rows: PairRows) -> None:
    """Raises InvalidSpec where pairs have weights: RewardTrainer would train on all alike."""
    weighted = [row for row, weight in zip(rows.ids, rows.weights, strict=True) if weight != 1.0]
    if weighted:
        raise InvalidSpec(
            f"TRL's reward loss takes no weights, and {len(weighted)} pairs have one other than 1 (the "
            f"first: {weighted[0]}): use engine native, or set weight to false.",
            pairs=len(weighted),
            first=weighted[0],
        )


def reward_trainer(
    model: PreTrainedModel, rows: PairRows, tokenizer: PreTrainedTokenizerBase, task: StageTask
) -> PairRewardTrainer:
    """The trainer of a reward model on pairs; tokenizer gives the padding id alone."""
    assert isinstance(task.config, RewardModelStage)
    columns: dict[str, Sequence[object]] = {
        "chosen_ids": [pair.prompt_ids + pair.chosen_ids for pair in rows.encoded],
        "rejected_ids": [pair.prompt_ids + pair.rejected_ids for pair in rows.encoded],
        "margin": rows.margins,
    }
    args = engine_config(
        RewardConfig,
        task,
        len(rows.encoded),
        center_rewards_coefficient=task.config.centring or None,
    )
    return PairRewardTrainer(
        model=model, args=args, train_dataset=Dataset.from_dict(columns), processing_class=tokenizer
    )


def fit_reward_model(
    model: PreTrainedModel,
    rows: PairRows,
    tokenizer: PreTrainedTokenizerBase,
    task: StageTask,
    reporter: Reporter,
) -> TrainingOutcome:
    """Trains the model in place on pairs. Raises InvalidSpec, TrainingDiverged, StageInterrupted."""
    refuse_what_trl_lacks(rows)
    with settings_kept(model):
        trainer = reward_trainer(model, rows, tokenizer, task)
        return run_trainer(trainer, rows.encoded, task, reporter)
