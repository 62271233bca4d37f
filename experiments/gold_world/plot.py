"""Gold reward against KL: what each arm gained for how far it went."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from experiments.gold_world.findings import LABELS, gold
from experiments.gold_world.seed import SeedResult
from experiments.gold_world.settings import ARMS

COLOURS = {"sft": "#6b7280", "dpo_easy": "#2563eb", "mpo": "#c2410c", "dpo_all": "#15803d"}
MARKERS = {"sft": "o", "dpo_easy": "s", "mpo": "D", "dpo_all": "^"}


def plot(results: Sequence[SeedResult], path: Path) -> None:
    """One point an arm and seed, as SVG; the same results give the same bytes."""
    with plt.rc_context({"svg.hashsalt": "gold world", "font.size": 11}):
        figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
        for arm in ARMS:
            axes.scatter(
                [result.arms[arm].kl for result in results],
                [gold(result, arm) for result in results],
                color=COLOURS[arm],
                marker=MARKERS[arm],
                label=LABELS[arm],
                alpha=0.85,
            )
        axes.set_xlabel("KL to SFT, nats a response")
        axes.set_ylabel("gold reward, mean over held-out prompts")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
        figure.savefig(path, metadata={"Date": None})
        plt.close(figure)
