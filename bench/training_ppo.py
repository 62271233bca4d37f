"""PPO under the opponents' protocol: a run of the engine, and its numbers for a rollout of theirs."""

import argparse
import resource
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.training_data import RESPONSE_TOKENS, Prompts
from mpo.config import PPOStage
from mpo.generation import SampledResponse
from mpo.packed_models import pack_where_exact, say_nothing
from mpo.ppo.iteration import iterate, old_tokens
from mpo.ppo.loss import ppo_policy_loss, ppo_value_loss
from mpo.ppo.networks import Critic, Networks, trained_networks
from mpo.ppo.prompts import EncodedPrompt
from mpo.ppo.rollouts import PassBound, Rollouts, form_micro_batches, measure_tokens
from mpo.ppo.state import PPOTraining, episode_counts
from mpo.ppo.train import load_networks
from mpo.reporter import StageInput, StageTask
from mpo.responses import pad_responses, response_logprobs
from mpo.reward_model.score import score_responses
from mpo.tokenization import Terminators, load_tokenizer
from mpo.training_config import LoRAConfig

ADAM_EPSILON = 1e-8
PHASES = {"rollout": "rollout_seconds", "measure": "scoring_seconds", "update": "update_seconds"}
METRICS = {"reward": "mean_reward", "kl": "kl"}


def run_ppo(chosen: argparse.Namespace, prompts: Prompts) -> dict[str, Any]:
    """A run's numbers, or with `--parity FILE` those of the rollout in that file."""
    training = load_training(chosen, prompts)
    return parity(training, Path(chosen.parity)) if chosen.parity else train(training, prompts)


def load_training(chosen: argparse.Namespace, prompts: Prompts) -> PPOTraining:
    """The protocol's PPO before its first step: no stop token, no clipping of gradients, KL by k1."""
    config = PPOStage(
        learning_rate=3e-5,
        kl_coefficient=0.05,
        rollout_prompts=chosen.batch,
        mini_batches=4,
        epochs=4,
        episodes=len(prompts.token_ids),
        max_new_tokens=RESPONSE_TOKENS,
        missing_eos_penalty=0.0,
        max_grad_norm=1e9,
        critic=chosen.critic,
        lora=LoRAConfig() if chosen.adapters else None,
        precision="fp32",
    )
    networks = networks_of(chosen, config)
    trained = trained_networks(networks, config.learning_rate)
    for network in trained:
        network.optimizer.param_groups[0]["eps"] = ADAM_EPSILON
    tokenizer = load_tokenizer(chosen.model)
    assert isinstance(tokenizer.eos_token_id, int)
    return PPOTraining(
        config=config,
        seed=chosen.seed,
        networks=networks,
        prompts=[EncodedPrompt(str(number), ids) for number, ids in enumerate(prompts.token_ids)],
        terminators=Terminators(tokenizer.eos_token_id, frozenset(), prompts.pad_id),
        counts=episode_counts(config, len(prompts.token_ids)),
        trained=trained,
        kl_coefficient=config.kl_coefficient,
    )


def networks_of(chosen: argparse.Namespace, config: PPOStage) -> Networks:
    """Policy and reference of one folder, reward model and critic of another, as the stage loads them."""
    folders = {"policy": chosen.model, "reference": chosen.model, "reward_model": chosen.reward}
    inputs = {role: (StageInput(role, folder),) for role, folder in folders.items()}
    networks = load_networks(StageTask(config, inputs, Path(), chosen.seed), config)
    for network in networks.whole():
        pack_where_exact(network, say_nothing)
    return networks


def train(training: PPOTraining, prompts: Prompts) -> dict[str, Any]:
    """All iterations, and what they took."""
    began, cpu_began = time.perf_counter(), time.process_time()
    history = []
    while training.iteration < len(training.counts):
        metrics = iterate(training, lambda: False)
        assert metrics is not None
        history.append(metrics)
    seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu_began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    episodes, sampled = len(prompts.token_ids), len(prompts.token_ids) * RESPONSE_TOKENS
    networks, epochs = training.networks, training.config.epochs
    whole = networks.whole()[0]
    policy = sum(weight.numel() for name, weight in whole.named_parameters() if ".lora_" not in name)
    embedding: Any = whole.get_input_embeddings().weight
    value = sum(weight.numel() for _, weight in networks.reward_model.named_parameters())
    value -= embedding.numel()
    useful = sum(map(len, prompts.token_ids)) + sampled
    work = useful * (2 * policy + 2 * policy + 4 * value + epochs * 6 * (policy + value))
    ends = {"first": history[0], "last": history[-1]}
    return {
        "seconds": round(seconds, 3),
        "cpu_seconds": round(cpu_seconds, 3),
        "tokenize_seconds": round(prompts.tokenize_seconds, 3),
        "steps": len(history),
        "pairs": episodes,
        "pairs_per_second": round(episodes / seconds, 3),
        "token_positions": useful * (4 + 2 * epochs),
        "first_loss": round(history[0]["loss"], 6),
        "last_loss": round(history[-1]["loss"], 6),
        "peak_rss_mb": round(peak, 1),
        "useful_tokens": useful,
        "generated_tokens": sampled,
        **{
            name: round(sum(sampled / len(history) / m[f"{phase}_tokens_per_second"] for m in history), 3)
            for phase, name in PHASES.items()
        },
        "optimizer_steps": training.optimizer_steps,
        "matmul_parameters": {"policy": policy, "value": value},
        "useful_gflops": round(6 * policy * useful / seconds / 1e9, 2),
        "useful_gflops_all_passes": round(work / seconds / 1e9, 2),
        "metrics": {
            f"{theirs}_{end}": round(metrics[ours], 6)
            for ours, theirs in METRICS.items()
            for end, metrics in ends.items()
        },
    }


@torch.no_grad()
def parity(training: PPOTraining, rollout: Path) -> dict[str, Any]:
    """Scores, whitened advantages, and the first mini-batch's loss of a rollout that an opponent wrote."""
    theirs, pad_id = np.load(rollout), training.terminators.pad_id
    width = theirs["queries"].shape[1]
    prompts = [[int(i) for i in row if i != pad_id] for row in theirs["queries"]]
    responses = [[int(i) for i in row[width:]] for row in theirs["query_responses"]]
    rollouts = Rollouts(prompts, [SampledResponse(ids) for ids in responses])
    networks, config = training.networks, training.config
    scores = score_responses(networks.reward_model, prompts, responses)
    device, bound = networks.policy.device, PassBound.of(networks.policy)
    batches = form_micro_batches(rollouts, config.mini_batches, bound, pad_id, device)
    tokens = measure_tokens(networks, batches, len(rollouts), config.temperature)
    old = old_tokens(training, scores.to(device), tokens)
    first = [_place(row, theirs["query_responses"]) for row in theirs["mini_batch"]]
    rows = torch.tensor(first, device=device)
    batch = pad_responses([prompts[i] for i in first], [responses[i] for i in first], pad_id, device, rows)
    count, here = batch.response_mask.sum(), old.rows(batch.rows, batch.response_mask)
    logprobs = response_logprobs(networks.policy, batch, config.temperature)
    loss = ppo_policy_loss(logprobs, here, clip=config.clip, tokens=count).loss
    critic = networks.critic
    assert isinstance(critic, Critic)
    value = ppo_value_loss(critic.values(batch), here, clip=config.value_clip, tokens=count)
    # Theirs are divided by the standard deviation of a sample, ours by that of all that there are.
    ours, sampled = old.advantages.cpu().numpy(), sum(map(len, responses))
    apart = {
        "scores": scores.numpy() - theirs["scores"],
        "advantages": ours - theirs["advantages"] * np.sqrt(sampled / (sampled - 1)),
    }
    return {
        "loss": float(loss + config.value_coefficient * value),
        "their_loss": float(theirs["loss"]),
        **{f"{name}_abs_diff": float(np.abs(difference).max()) for name, difference in apart.items()},
    }


def _place(row: np.ndarray[Any, Any], rows: np.ndarray[Any, Any]) -> int:
    """The number of the row that equals it."""
    return int(np.flatnonzero((rows == row).all(axis=1))[0])
