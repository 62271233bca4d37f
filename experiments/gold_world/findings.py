"""What the worlds say together: differences with intervals over seeds, as text."""

from collections.abc import Sequence
from math import sqrt
from statistics import mean, stdev

from experiments.gold_world.seed import SeedResult
from experiments.gold_world.settings import ARMS, Settings

T_QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""0.975-quantiles of Student's t by degrees of freedom."""

LABELS = {
    "sft": "SFT",
    "dpo_easy": "DPO on easy",
    "mpo": "MPO (then PPO on difficult)",
    "dpo_all": "DPO on all",
}
CONTRASTS = (
    ("dpo_easy", "sft"),
    ("mpo", "sft"),
    ("dpo_all", "sft"),
    ("mpo", "dpo_easy"),
    ("mpo", "dpo_all"),
)
LEARNABLE = 0.70
"""Out-of-fold accuracy below which the question is empty: the reward model has not learnt the preference."""

Interval = tuple[float, float]


def interval(values: Sequence[float]) -> Interval:
    """Student's 95 % interval of a mean over seeds; raises ValueError for fewer than two of them."""
    if len(values) < 2:
        raise ValueError("an interval over seeds needs at least two seeds")
    half = T_QUANTILES[len(values) - 1] * stdev(values) / sqrt(len(values))
    return mean(values) - half, mean(values) + half


def gold(result: SeedResult, arm: str) -> float:
    """Mean gold reward of an arm in one world."""
    return mean(result.arms[arm].gold)


def rise(rewards: Sequence[float]) -> float:
    """How far a curve rose: the mean of its last quarter less that of its first."""
    quarter = max(1, len(rewards) // 4)
    return mean(rewards[-quarter:]) - mean(rewards[:quarter])


def findings(results: Sequence[SeedResult], settings: Settings, command: str) -> str:
    """The page: what was asked, the table, the differences, and what they do and do not say."""
    lines = [
        "# A world whose truth is known",
        "",
        f"Written by `{command}`; figures are of that run. The base model is `tiny`; prompts come from the "
        "grammar of `examples/`, and so does the gold reward, a sum of stated things that no model sees. Two "
        "responses of `tiny` make a pair; the label is drawn by Bradley and Terry, with "
        f"σ({results[0].label_scale:g} · difference of gold rewards). All arms of a seed share their pairs, "
        f"reward models and split; each then answers the same {settings.prompts} prompts, which no training "
        "saw.",
        "",
        *_worlds(results),
        "",
        *_arms(results),
        "",
        "Intervals are Student's, 95 %, over seeds: a seed is one world, with its own pairs, labels and "
        "training. KL is to SFT, over the whole vocabulary, in nats a response.",
        "",
        *_differences(results),
        "",
        *_ppo(results, settings),
        "",
        "![Gold reward against KL to SFT](gold_world.svg)",
        "",
    ]
    return "\n".join(lines)


def _worlds(results: Sequence[SeedResult]) -> list[str]:
    rows = [
        f"| {r.seed} | {r.pairs} | {r.wrong_labels:.3f} | {r.accuracy:.3f} [{r.accuracy_ci95[0]:.3f}, "
        f"{r.accuracy_ci95[1]:.3f}] | {max(r.length_baseline, 1 - r.length_baseline):.3f} "
        f"| {r.easy} / {r.difficult} |"
        for r in results
    ]
    accuracy = mean(r.accuracy for r in results)
    verdict = "so the question is not empty" if accuracy >= LEARNABLE else "so the question is EMPTY"
    return [
        "| seed | scored pairs | wrong labels | out-of-fold accuracy, on noisy labels | length alone | "
        "easy / difficult |",
        "| --- | --- | --- | --- | --- | --- |",
        *rows,
        "",
        f"Mean out-of-fold accuracy {accuracy:.3f}; {LEARNABLE:.2f} is asked, {verdict}.",
    ]


def _arms(results: Sequence[SeedResult]) -> list[str]:
    lines = ["| model | gold reward | KL to SFT | tokens | ended |", "| --- | --- | --- | --- | --- |"]
    for arm in ARMS:
        golds, kls = [gold(r, arm) for r in results], [r.arms[arm].kl for r in results]
        tokens, ended = mean(r.arms[arm].tokens for r in results), mean(r.arms[arm].ended for r in results)
        lines.append(
            f"| {LABELS[arm]} | {with_interval(golds)} | {mean(kls):.2f} | {tokens:.0f} | {ended:.2f} |"
        )
    return lines


def _differences(results: Sequence[SeedResult]) -> list[str]:
    lines = ["| difference of gold rewards | mean [95 %] | says |", "| --- | --- | --- |"]
    for better, worse in CONTRASTS:
        values = [gold(r, better) - gold(r, worse) for r in results]
        lines.append(f"| {LABELS[better]} − {LABELS[worse]} | {with_interval(values)} | {_says(values)} |")
    return lines


def _ppo(results: Sequence[SeedResult], settings: Settings) -> list[str]:
    rises = [rise(r.ppo_reward) for r in results]
    highest = max(kl for r in results for kl in r.ppo_kl)
    under = "under" if highest <= settings.max_kl else "OVER"
    return [
        f"PPO's reward (the reward model's, last quarter of its iterations less the first) rose by "
        f"{with_interval(rises)}: {_says(rises)}. Its KL to the DPO model was {highest:.2f} nats a response "
        f"at most, {under} `max_kl` {settings.max_kl:g}.",
    ]


def with_interval(values: Sequence[float]) -> str:
    """A mean over seeds with its interval."""
    low, high = interval(values)
    return f"{mean(values):.2f} [{low:.2f}, {high:.2f}]"


def _says(values: Sequence[float]) -> str:
    low, high = interval(values)
    return "higher" if low > 0 else "lower" if high < 0 else "no difference shown"
