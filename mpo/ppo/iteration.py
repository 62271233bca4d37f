"""One iteration of PPO: episodes, rewards, advantages, update."""

import time
from collections.abc import Callable
from functools import partial
from itertools import chain, pairwise

import torch
from torch import Tensor

from mpo.errors import UnusableModel
from mpo.masking import masked_whiten
from mpo.ppo.advantages import estimate_advantages
from mpo.ppo.failures import check_finite, diverged
from mpo.ppo.kl_controller import next_kl_coefficient
from mpo.ppo.loss import OldTokens
from mpo.ppo.metrics import rollout_metrics
from mpo.ppo.networks import move_reference
from mpo.ppo.rewards import penalise_cut_responses, token_rewards
from mpo.ppo.rollouts import (
    PassBound,
    Rollouts,
    RolloutTokens,
    form_micro_batches,
    measure_own_tokens,
    of_all_ranks,
    sample_rollouts,
)
from mpo.ppo.state import EPISODE, PPOTraining
from mpo.ppo.stops import nothing_to_learn, passed_max_kl
from mpo.ppo.update import update
from mpo.ranks import any_of, share
from mpo.responses import ResponseBatch, in_halves
from mpo.reward_model.score import score_responses
from mpo.seeds import row_seed
from mpo.short_memory import if_it_fits_all


def iterate(training: PPOTraining, should_stop: Callable[[], bool]) -> dict[str, float] | None:
    """Advances the training by one iteration and returns its metrics; None where it was asked to stop.

    A stop leaves the training as it was before the iteration. Sets `training.stopped` where the KL passes
    max_kl (then without an update) or the rewards do not differ any more. Raises TrainingDiverged.
    """
    clock = [time.perf_counter()]
    rollouts = _sample(training, should_stop)
    if rollouts is None:
        return None
    clock.append(time.perf_counter())
    scores = _score(training, rollouts)
    batches, tokens = _measure(training, rollouts)
    check_finite(training, _named(scores, tokens))
    rewards = penalise_cut_responses(scores, rollouts.was_cut, training.config.missing_eos_penalty)
    old = old_tokens(training, rewards.to(tokens.logprobs.device), tokens)
    metrics = rollout_metrics(rollouts.responses, scores, tokens, old)
    metrics |= {"kl_coefficient": training.kl_coefficient, "learning_rate": training.learning_rate()}
    clock.append(time.perf_counter())
    equal, too_far = nothing_to_learn(training, rewards), passed_max_kl(training, metrics["kl"])
    training.stopped = too_far or equal
    if too_far is None:
        metrics |= update(training, batches, old).metrics(training.config.value_coefficient)
        clock.append(time.perf_counter())
        _adapt(training, metrics["kl"], len(rollouts))
    metrics |= _speeds(clock, sum(len(response.token_ids) for response in rollouts.responses))
    training.iteration += 1
    training.first = training.first or metrics
    training.last = metrics
    return metrics


def _sample(training: PPOTraining, should_stop: Callable[[], bool]) -> Rollouts | None:
    asked: list[bool] = []

    def stop(_index: int) -> bool:
        # Remembered: responses that were broken off must not be trained on, whatever is answered later.
        if not asked and should_stop():
            asked.append(True)
        return bool(asked)

    prompts = [training.prompts[number].token_ids for number in training.chosen_prompts()]
    seeds = [row_seed(training.seed, EPISODE, number) for number in training.episodes]
    mine = share(training.ranks, [1] * len(prompts))
    here = slice(mine.start, mine.stop)
    try:
        rollouts = sample_rollouts(
            training.networks.policy, prompts[here], training.sampling, seeds[here], stop
        )
    except UnusableModel as error:
        if training.optimizer_steps == 0:
            raise
        raise diverged(training, "what the policy predicts", mine) from error
    if any(any_of(training.ranks, bool(asked))):
        return None
    return Rollouts(prompts, list(chain(*training.ranks.gather_objects(rollouts.responses))))


def _score(training: PPOTraining, rollouts: Rollouts) -> Tensor:
    """Scores of the responses as the reward model knows them: with the terminator of its training."""
    terminator = training.terminators.terminator_id
    responses = [response.terminated_ids(terminator) for response in rollouts.responses]
    mine = share(training.ranks, rollouts.tokens)
    here = slice(mine.start, mine.stop)
    scores = torch.zeros(len(rollouts))
    scores[here] = score_responses(training.networks.reward_model, rollouts.prompts[here], responses[here])
    return training.ranks.sum(scores)


def _measure(training: PPOTraining, rollouts: Rollouts) -> tuple[list[ResponseBatch], RolloutTokens]:
    """What the networks say of the responses, and the micro-batches that they said it of. Where the memory of
    any rank was short they read halves of these, from there on in the training."""
    ranks, batches = training.ranks, _micro_batches(training, rollouts)
    measure = partial(
        measure_own_tokens,
        training.networks,
        episodes=len(rollouts),
        temperature=training.config.temperature,
        ranks=ranks,
    )
    if not training.halved:
        own = if_it_fits_all(ranks, partial(measure, batches))
        if own is not None:
            return batches, of_all_ranks(own, ranks)
        training.halve()
    return batches, of_all_ranks(measure(in_halves(batches)), ranks)


def _micro_batches(training: PPOTraining, rollouts: Rollouts) -> list[ResponseBatch]:
    policy = training.networks.policy
    return form_micro_batches(
        rollouts,
        training.config.mini_batches,
        PassBound.of(policy),
        training.terminators.pad_id,
        policy.device,
        training.ranks,
    )


def _named(scores: Tensor, tokens: RolloutTokens) -> dict[str, Tensor | None]:
    return {
        "the reward model's score": scores,
        "the policy's log-probability": tokens.logprobs,
        "the reference's log-probability": tokens.reference_logprobs,
        "the SFT model's log-probability": tokens.sft_logprobs,
        "the critic's value": tokens.values,
    }


def old_tokens(training: PPOTraining, rewards: Tensor, tokens: RolloutTokens) -> OldTokens:
    """What the update compares with. rewards: (episodes,), given at each response's last token."""
    config, mask = training.config, tokens.response_mask
    by_token = token_rewards(
        rewards,
        tokens.logprobs,
        tokens.reference_logprobs,
        mask,
        kl_coefficient=training.kl_coefficient,
    )
    advantages, returns = estimate_advantages(
        by_token, tokens.values, mask, discount=config.discount, gae_lambda=config.gae_lambda
    )
    return OldTokens(tokens.logprobs, tokens.values, masked_whiten(advantages, mask), returns, mask)


def _adapt(training: PPOTraining, kl: float, episodes: int) -> None:
    """What the next iteration's reward is measured by: the KL's price, and from where it is counted."""
    config = training.config
    if config.kl_controller is not None:
        training.kl_coefficient = next_kl_coefficient(
            training.kl_coefficient, kl, episodes, config.kl_controller
        )
    if config.ema_reference is not None:
        move_reference(training.networks, config.ema_reference)


def _speeds(clock: list[float], tokens: int) -> dict[str, float]:
    """Sampled tokens a second: over all, and by phase; measure is scores, old logprobs and values."""
    phases = ("rollout", "measure", "update")
    seconds = {phase: b - a for phase, (a, b) in zip(phases, pairwise(clock), strict=False)}
    by_phase = {f"{phase}_tokens_per_second": tokens / spent for phase, spent in seconds.items()}
    return {"tokens_per_second": tokens / (clock[-1] - clock[0]), **by_phase}
