"""The sections of docs/benchmarks.md that `bench.training` writes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.load_page import Conditions, spread, write_page_section
from mpo.intervals import wilson_interval

TITLES = {"rm": "Training a reward model", "dpo": "Training by DPO", "ppo": "PPO with a separate critic"}
FLOORS = {"rm": (3.0, 1.4), "dpo": (4.5, 1.7), "ppo": (2.2, 1.8)}
GOALS = {"rm": (5.0, 2.0), "dpo": (7.0, 2.5), "ppo": (3.5, 3.0)}
MEMORY_FLOOR = 0.7
PEAK_FLOOR = 0.4
"""Of the machine's matrix product, for reward models and DPO; of PPO nothing was asked."""
SIDES = {"ours": "ours", "theirs_default": "TRL, default", "theirs_tuned": "TRL, tuned"}
COLUMNS = (
    "side",
    "seconds",
    "CPU seconds",
    "pairs/s",
    "peak over imports, MiB",
    "useful GFLOP/s (of the matmul peak)",
    "held-out accuracy, or last reward and KL",
    "their time / ours",
)
OTHERS = {
    "shared_trunk": "ours, the critic a head on the policy: another algorithm",
    "lora": "ours, LoRA of rank 16: another algorithm",
}


def write_training(page: Path, conditions: Conditions, found: Mapping[str, Any]) -> None:
    """The table of one stage, with what was to be reached and whether it was."""
    name = found["stage"]
    said = (
        f"{conditions.machine()}. Protocol and opponents: `bench/peers/README.md`; {found['precision']}, "
        f"{found['ours']['settings']['threads']} threads; ratios of {found['compared']}, medians over "
        f"{len(found['ratios_default'])} rounds with the smallest and largest. {_equal_work(found)} "
        f"{_company(found)}{_verdict(found)}"
    )
    write_page_section(page, f"## {TITLES[name]}", conditions.command, said, [COLUMNS, *_rows(found)])


def _equal_work(found: Mapping[str, Any]) -> str:
    """How far apart the sides are where they must not be."""
    said = f"Losses of the same batch are {found['loss_abs_diff']:.1e} apart"
    if found["stage"] == "ppo":
        rewards, advantages = found["scores_abs_diff"], found["advantages_abs_diff"]
        return f"{said}, rewards of the same rollout {rewards:.1e}, whitened advantages {advantages:.1e}."
    loss, accuracy = found["held_out_loss_abs_diff"], found["held_out_accuracy_abs_diff"]
    return f"{said}; after one step losses of held-out pairs {loss:.1e}, accuracies {accuracy:.3f}."


def _company(found: Mapping[str, Any]) -> str:
    """Which runs were not the protocol's, if any."""
    count = found["runs_with_company"]
    return f"**{count} runs had company on their cores, though repeated.** " if count else ""


def _verdict(found: Mapping[str, Any]) -> str:
    """What each ratio came to against its floor and its goal."""
    said, floors, goals = list[str](), FLOORS[found["stage"]], GOALS[found["stage"]]
    for side, floor, goal in zip(("default", "tuned"), floors, goals, strict=True):
        ratio = found[f"ratio_{side}"]
        word = "floor reached, goal missed" if ratio >= floor else "**missed**"
        word = "goal reached" if ratio >= goal else word
        said.append(f"Against {side}: {ratio:.2f} (floor {floor:g}, goal {goal:g}): {word}.")
    if found["stage"] != "ppo":
        share = _rate(found["ours"]) / found["ours"]["matmul_gflops"]
        word = "reached" if share >= PEAK_FLOOR else "**missed**"
        said.append(f"Useful work: {share:.0%} of the matmul peak (at least {PEAK_FLOOR:.0%}): {word}.")
        if found["stage"] == "dpo":
            own = found["ours"]["useful_gflops"] / found["ours"]["matmul_gflops"]
            said.append(f"The reference's passes, which are in the seconds, count; without them {own:.0%}.")
        memory = found["memory_ratio_default"]
        word = "reached" if memory <= MEMORY_FLOOR else "**missed**"
        said.append(f"Memory over imports: {memory:.2f} of the default's (at most {MEMORY_FLOOR:g}): {word}.")
        word = "overlap" if _held_out_alike(found) else "do **not** overlap"
        said.append(f"The 95 % intervals of the accuracy on {found['held_out_pairs']} held-out pairs {word}.")
        said.append("Each side has an order of its own, which alone moves it.")
    return " ".join(said)


def _interval(line: Mapping[str, Any], pairs: int) -> tuple[float, float]:
    """Wilson's, of the held-out accuracy."""
    return wilson_interval(line["metrics"]["held_out_accuracy"] * pairs, pairs)


def _held_out_alike(found: Mapping[str, Any]) -> bool:
    """Whether the intervals of both opponents and ours have something in common."""
    low, high = _interval(found["ours"], found["held_out_pairs"])
    theirs = [_interval(found[side], found["held_out_pairs"]) for side in ("theirs_default", "theirs_tuned")]
    return all(least <= high and low <= most for least, most in theirs)


def _rows(found: Mapping[str, Any]) -> list[Sequence[str]]:
    rows = [
        _row(found[side], title, found["held_out_pairs"], found.get(f"ratios_{side.removeprefix('theirs_')}"))
        for side, title in SIDES.items()
    ]
    for name, other in found["others"].items():
        row = _row(other["line"], OTHERS[name], None, None)
        default, tuned = spread(other["ratios_default"]), spread(other["ratios_tuned"])
        # What its work would be in the opponents' passes says nothing of it.
        rows.append((*row[:5], "", row[6], f"default {default}, tuned {tuned}"))
    return rows


def _row(
    line: Mapping[str, Any], title: str, held_out: int | None, ratios: Sequence[float] | None
) -> Sequence[str]:
    rate = _rate(line)
    return (
        f"{title} ({line['version']})",
        f"{line['seconds']:.1f}",
        f"{line['cpu_seconds']:.1f}",
        f"{line['pairs_per_second']:.2f}",
        f"{line['peak_rss_mb'] - line['imports_mb']:.0f}",
        f"{rate:.0f} ({rate / line['matmul_gflops']:.0%})",
        _quality(line, held_out),
        "" if ratios is None else spread(ratios),
    )


def _rate(line: Mapping[str, Any]) -> float:
    """GFLOP/s of the work that had to be done."""
    own = line.get("useful_gflops_with_reference", line["useful_gflops"])
    return float(line.get("useful_gflops_all_passes", own))


def _quality(line: Mapping[str, Any], held_out: int | None) -> str:
    metrics = line["metrics"]
    if held_out and "held_out_accuracy" in metrics:
        low, high = _interval(line, held_out)
        return f"{metrics['held_out_accuracy']:.3f} [{low:.3f}, {high:.3f}]"
    reward = metrics.get("mean_reward_last")
    return "" if reward is None else f"{reward:.3f}, KL {metrics['kl_last']:.3f}"
