import math

import pytest
import torch

from mpo.config import PPOStage
from mpo.errors import TrainingDiverged, UnusableModel
from mpo.ppo.iteration import iterate
from mpo.ppo.state import PPOTraining
from tests.mpo.ppo.world import training_of


def some_training(**config: object) -> PPOTraining:
    settings = {"rollout_prompts": 6, "episodes": 18, "mini_batches": 2, "max_new_tokens": 3, **config}
    return training_of(PPOStage.model_validate(settings), prompts=3)


@torch.no_grad()
def break_embedding(model: torch.nn.Module, token: int) -> None:
    """A model that says NaN wherever it has read the token."""
    model.get_input_embeddings().weight[token] = math.nan


def test_scores_that_are_not_finite_name_the_rows_that_they_belong_to() -> None:
    training = some_training()
    assert iterate(training, lambda: False) is not None
    last = dict(training.last)
    # Row 0's prompt is the start token alone; token 3 stands in the others' prompts, and in some responses.
    training.prompts[0], training.prompts[1] = training.prompts[1], training.prompts[0]
    break_embedding(training.networks.reward_model, 3)
    with pytest.raises(TrainingDiverged) as caught:
        iterate(training, lambda: False)
    facts = caught.value.facts
    assert (facts["iteration"], facts["step"]) == (2, training.optimizer_steps)
    assert facts["last_metrics"] == last
    chosen = training.chosen_prompts()
    certain = [n for n, prompt in zip(training.episodes, chosen, strict=True) if prompt != 1]
    assert set(certain) <= set(facts["episodes"]) <= set(training.episodes)
    assert {"row 1", "row 2"} <= set(facts["prompts"])
    for said in (
        "reward model's score is not finite in iteration 2",
        "row 1",
        f"reward {last['reward']:.4g}",
    ):
        assert said in str(caught.value)


def test_a_loss_that_is_not_finite_names_the_optimizer_step() -> None:
    training = some_training(epochs=1)
    assert iterate(training, lambda: False) is not None
    critic = training.networks.critic
    before = critic.network.score.register_forward_hook(
        lambda _module, _inputs, output: output * math.inf if output.requires_grad else output
    )
    with pytest.raises(
        TrainingDiverged, match=r"loss is not finite in iteration 2, optimizer step 3\."
    ) as caught:
        iterate(training, lambda: False)
    before.remove()
    assert len(caught.value.facts["episodes"]) == 3  # of the micro-batch, not of the iteration
    assert all(math.isfinite(value) for value in caught.value.facts["last_metrics"].values())


def test_a_gradient_that_is_not_finite_is_named_before_it_reaches_the_weights() -> None:
    training = some_training()
    weight = training.networks.policy.lm_head.weight
    before = weight.detach().clone()
    weight.register_hook(lambda gradient: gradient * math.nan)
    with pytest.raises(TrainingDiverged, match=r"gradient is not finite in iteration 1, optimizer step 1\."):
        iterate(training, lambda: False)
    assert torch.equal(weight.detach(), before)
    assert training.optimizer_steps == 0


def test_a_policy_that_broke_in_training_diverged_and_one_that_came_broken_is_unusable() -> None:
    training = some_training()
    break_embedding(training.networks.policy, 1)
    with pytest.raises(UnusableModel):
        iterate(training, lambda: False)
    training = some_training()
    assert iterate(training, lambda: False) is not None
    break_embedding(training.networks.policy, 1)
    with pytest.raises(TrainingDiverged, match="What the policy predicts is not finite in iteration 2"):
        iterate(training, lambda: False)
