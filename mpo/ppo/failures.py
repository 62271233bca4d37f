"""Says where a PPO training stopped being made of finite numbers."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mpo.errors import TrainingDiverged
from mpo.ppo.state import PPOTraining
from mpo.training import listed_metrics, listed_rows


def diverged(
    training: PPOTraining, what: str, rows: Sequence[int], step: int | None = None
) -> TrainingDiverged:
    """The error to raise where something is not finite. rows: which of the iteration's episodes were in it.

    step: the optimizer step that it happened in; None = none, it was after the last one taken. Facts:
    iteration, step, episodes, prompts (ids of their rows), last_metrics (of the iteration before).
    """
    chosen = training.chosen_prompts()
    prompts = list(dict.fromkeys(training.prompts[chosen[row]].id for row in rows))
    after = f"after optimizer step {training.optimizer_steps}" if step is None else f"optimizer step {step}"
    metrics = {name: value for name, value in training.last.items() if not name.endswith("per_second")}
    return TrainingDiverged(
        f"{what[:1].upper()}{what[1:]} is not finite in iteration {training.iteration + 1}, {after}. "
        f"Rows whose prompts are concerned: {listed_rows(prompts)}. "
        f"Metrics of the iteration before: {listed_metrics(metrics) or 'there is none'}. "
        "A lower learning_rate may help; in the first iteration, look at the models and at these rows.",
        iteration=training.iteration + 1,
        step=training.optimizer_steps if step is None else step,
        episodes=[training.episodes[row] for row in rows],
        prompts=prompts,
        last_metrics=dict(training.last),
    )


def check_finite(training: PPOTraining, numbers: Mapping[str, Tensor | None]) -> None:
    """Raises TrainingDiverged where a tensor, (episodes,) or (episodes, tokens), holds a NaN or infinity."""
    for what, tensor in numbers.items():
        if tensor is None:
            continue
        finite = torch.isfinite(tensor.reshape(len(tensor), -1)).all(dim=1)
        if not bool(finite.all()):
            raise diverged(training, what, (~finite).nonzero()[:, 0].tolist())
