"""When a PPO training ends early, and why."""

from torch import Tensor

from mpo.ppo.state import PPOTraining


def passed_max_kl(training: PPOTraining, kl: float) -> str | None:
    """Why to stop where the KL, in nats a response, is above max_kl."""
    limit = training.config.max_kl
    if limit is None or kl <= limit:
        return None
    return f"the KL to the reference, {kl:.3g} nats a response, passed max_kl {limit:g}"


def nothing_to_learn(training: PPOTraining, rewards: Tensor) -> str | None:
    """Why to stop where the last iterations had equal rewards each: no response was better than another.

    rewards: (episodes,), penalties taken off: where they differ, there is something to learn. Counts the
    iteration in `training.equal_batches`; a single episode never counts as equal.
    """
    equal = len(rewards) > 1 and bool((rewards == rewards[0]).all())
    training.equal_batches = training.equal_batches + 1 if equal else 0
    iterations = training.config.equal_iterations
    if training.equal_batches < iterations:
        return None
    return f"all rewards of an iteration were equal, {iterations} iterations in a row"
