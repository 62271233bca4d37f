"""What the demo's models are worth by the gold reward: the preference that its labels were drawn from.

No model has seen it, so it says what a judge that was trained on noisy labels cannot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from examples.grammar import gold_reward
from mpo.intervals import bootstrap_interval, wilson_interval


@dataclass(frozen=True)
class GoldMean:
    """A model's mean gold reward over prompts, with the bootstrap's 95 % interval."""

    model: str
    mean: float
    ci95: tuple[float, float]


@dataclass(frozen=True)
class GoldWins:
    """On how many prompts `model` got more gold reward than `against`; ties count half. ci95: Wilson's."""

    model: str
    against: str
    wins: int
    losses: int
    ties: int
    rate: float
    ci95: tuple[float, float]

    @property
    def verdict(self) -> str:
        """What the interval says."""
        if self.ci95[0] > 0.5:
            return "better"
        return "worse" if self.ci95[1] < 0.5 else "no difference shown"


Answers = Mapping[str, Sequence[str]]
"""By model, its answer to each prompt, in the prompts' order."""


def gold_rewards(prompts: Sequence[str], answers: Answers) -> dict[str, list[float]]:
    """By model, the gold reward of each of its answers."""
    return {
        model: [gold_reward(prompt, text) for prompt, text in zip(prompts, texts, strict=True)]
        for model, texts in answers.items()
    }


def gold_means(rewards: Mapping[str, Sequence[float]]) -> list[GoldMean]:
    """One a model, in the given order."""
    return [
        GoldMean(model, sum(values) / len(values), bootstrap_interval(values))
        for model, values in rewards.items()
    ]


def gold_wins(rewards: Mapping[str, Sequence[float]]) -> list[GoldWins]:
    """Each later model against each earlier one."""
    return [_wins(later, earlier, rewards) for earlier, later in combinations(rewards, 2)]


def _wins(model: str, against: str, rewards: Mapping[str, Sequence[float]]) -> GoldWins:
    pairs = list(zip(rewards[model], rewards[against], strict=True))
    wins = sum(mine > theirs for mine, theirs in pairs)
    losses = sum(mine < theirs for mine, theirs in pairs)
    ties = len(pairs) - wins - losses
    successes = wins + ties / 2
    interval = wilson_interval(successes, len(pairs))
    return GoldWins(model, against, wins, losses, ties, successes / len(pairs), interval)
