"""One iteration of PPO: episodes, rewards, advantages, update."""

import math
import time
from collections.abc import Callable

import torch
from torch import Tensor

from mpo.errors import TrainingDiverged
from mpo.masking import masked_mean, masked_whiten
from mpo.ppo.advantages import estimate_advantages
from mpo.ppo.loss import OldTokens
from mpo.ppo.rewards import penalise_cut_responses, token_rewards
from mpo.ppo.rollouts import (
    Rollouts,
    RolloutTokens,
    episode_prompts,
    form_micro_batches,
    measure_tokens,
    sample_rollouts,
)
from mpo.ppo.state import EPISODE, PROMPT_ORDER, PPOTraining
from mpo.ppo.update import update
from mpo.reward_model.score import score_responses
from mpo.seeds import row_seed

EQUAL_BATCHES = 5
"""Iterations in a row whose scores are all equal, after which training stops: nothing is left to learn."""


def iterate(training: PPOTraining, should_stop: Callable[[], bool]) -> dict[str, float] | None:
    """Advances the training by one iteration and returns its metrics; None where it was asked to stop.

    A stop leaves the training as it was before the iteration. Sets `training.stopped` where the KL passes
    max_kl (then without an update) or the scores do not differ any more. Raises TrainingDiverged.
    """
    started = time.perf_counter()
    rollouts = _sample(training, should_stop)
    if rollouts is None:
        return None
    sampled = time.perf_counter()
    scores = _score(training, rollouts)
    networks, config = training.networks, training.config
    device, vocabulary = networks.policy.device, networks.policy.config.get_text_config().vocab_size
    pad_id = training.terminators.pad_id
    batches = form_micro_batches(rollouts, config.mini_batches, vocabulary, pad_id, device)
    tokens = measure_tokens(networks, batches, len(rollouts), config.temperature)
    old = _old_tokens(training, rollouts, scores.to(device), tokens)
    metrics = _rollout_metrics(rollouts, scores, tokens, old)
    if not all(math.isfinite(value) for value in metrics.values()):
        raise TrainingDiverged(iteration=training.iteration + 1)
    training.stopped = _reason_to_stop(training, metrics["kl"], scores)
    metrics["learning_rate"] = training.learning_rate()
    passed_max_kl = config.max_kl is not None and metrics["kl"] > config.max_kl
    if not passed_max_kl:
        metrics |= update(training, batches, old).metrics(config.value_coefficient)
    sampled_tokens = sum(len(response.token_ids) for response in rollouts.responses)
    ended = time.perf_counter()
    metrics["tokens_per_second"] = sampled_tokens / (ended - started)
    metrics["rollout_tokens_per_second"] = sampled_tokens / (sampled - started)
    metrics["update_tokens_per_second"] = sampled_tokens / (ended - sampled)
    training.iteration += 1
    training.first = training.first or metrics
    training.last = metrics
    return metrics


def _sample(training: PPOTraining, should_stop: Callable[[], bool]) -> Rollouts | None:
    seed, start = training.seed, training.first_episode
    numbers = range(start, start + training.counts[training.iteration])
    chosen = episode_prompts(row_seed(seed, PROMPT_ORDER), len(training.prompts), start, len(numbers))
    asked: list[bool] = []

    def stop(_index: int) -> bool:
        # Remembered: responses that were broken off must not be trained on, whatever is answered later.
        if not asked and should_stop():
            asked.append(True)
        return bool(asked)

    rollouts = sample_rollouts(
        training.networks.policy,
        [training.prompts[number] for number in chosen],
        training.sampling,
        [row_seed(seed, EPISODE, number) for number in numbers],
        stop,
    )
    return None if asked else rollouts


def _score(training: PPOTraining, rollouts: Rollouts) -> Tensor:
    """Scores of the responses as the reward model knows them: with the terminator of its training."""
    terminator = training.terminators.terminator_id
    responses = [response.terminated_ids(terminator) for response in rollouts.responses]
    return score_responses(training.reward_model, rollouts.prompts, responses)


def _old_tokens(
    training: PPOTraining, rollouts: Rollouts, scores: Tensor, tokens: RolloutTokens
) -> OldTokens:
    config, mask = training.config, tokens.response_mask
    was_cut = torch.tensor([r.finish_reason == "length" for r in rollouts.responses], device=scores.device)
    rewards = token_rewards(
        penalise_cut_responses(scores, was_cut, config.missing_eos_penalty),
        tokens.logprobs,
        tokens.reference_logprobs,
        mask,
        kl_coefficient=config.kl_coefficient,
    )
    advantages, returns = estimate_advantages(
        rewards, tokens.values, mask, discount=config.discount, gae_lambda=config.gae_lambda
    )
    return OldTokens(tokens.logprobs, tokens.values, masked_whiten(advantages, mask), returns, mask)


def _rollout_metrics(
    rollouts: Rollouts, scores: Tensor, tokens: RolloutTokens, old: OldTokens
) -> dict[str, float]:
    mask, episodes = tokens.response_mask, len(rollouts)
    residual = masked_variance(old.returns - old.values, mask)
    total = masked_variance(old.returns, mask)
    metrics = {
        "reward": scores.mean().item(),
        "kl": (tokens.logprobs - tokens.reference_logprobs).sum().item() / episodes,
        "entropy": masked_mean(tokens.entropies, mask).item(),
        "explained_variance": (1 - residual / total).item() if total > 0 else 0.0,
        "response_tokens": mask.sum().item() / episodes,
        "eos_rate": sum(r.finish_reason == "stop" for r in rollouts.responses) / episodes,
    }
    if tokens.sft_logprobs is not None:
        metrics["kl_to_sft"] = (tokens.logprobs - tokens.sft_logprobs).sum().item() / episodes
    return metrics


def masked_variance(x: Tensor, mask: Tensor) -> Tensor:
    """Population variance of the entries where mask is True, a scalar."""
    return masked_mean((x - masked_mean(x, mask)) ** 2, mask)


def _reason_to_stop(training: PPOTraining, kl: float, scores: Tensor) -> str | None:
    limit = training.config.max_kl
    if limit is not None and kl > limit:
        return f"the KL to the reference, {kl:.3g} nats a response, passed max_kl {limit:g}"
    equal = len(scores) > 1 and bool((scores == scores[0]).all())
    training.equal_batches = training.equal_batches + 1 if equal else 0
    if training.equal_batches >= EQUAL_BATCHES:
        return f"all scores of an iteration were equal for {EQUAL_BATCHES} iterations in a row"
    return None
