"""Whether both sides of `bench.training` do the same work: how far apart they are where they must not be."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from bench.training_sides import Line, Sides

TOLERANCE = 1e-4
"""What the numbers of `differences` may be; of held-out pairs' accuracies one pair may differ."""

ACCURACY = "held_out_accuracy_abs_diff"


def differences(sides: Sides, folder: Path) -> dict[str, float]:
    """Between both sides: what they make of one batch, or rollout, and the model after one step.

    The losses of the same batch; of PPO also rewards and whitened advantages, over a rollout of the
    opponent's. Of pairs also loss and accuracy of those held out after one optimizer step, which takes the
    same pairs in whatever order a side has them; after more steps the order alone moves both.
    """
    if sides.name == "ppo":
        rollout = folder / "rollout.npz"
        sides.theirs("--parity", str(rollout))
        line = sides.ours("--parity", str(rollout))
        apart = {name: line[name] for name in ("scores_abs_diff", "advantages_abs_diff")}
        return {"loss_abs_diff": abs(line["loss"] - line["their_loss"]), **apart}
    # Where policy and reference are one, the loss of DPO is ln 2 whatever a side computes.
    other = ("--reference", str(sides.models / "base")) if sides.name == "dpo" else ()
    model = ("--model", str(sides.models / "shifted")) if sides.name == "dpo" else ()
    asked = (*other, *model, "--parity", "--steps", "1", "--held-out", "0")
    loss = abs(sides.ours(*asked)["loss"] - sides.theirs(*asked)["loss"])
    return {"loss_abs_diff": loss, **_after_one_step(replace(sides, steps=1))}


def _after_one_step(sides: Sides) -> dict[str, float]:
    lines: list[Line] = [sides.ours(), sides.theirs("--tuning", "tuned")]
    ours, theirs = (line["metrics"] for line in lines)
    return {
        f"{name}_abs_diff": abs(ours[name] - theirs[name]) for name in ("held_out_loss", "held_out_accuracy")
    }


def too_far_apart(apart: Mapping[str, float], held_out: int | None) -> list[str]:
    """Sentences on what differs by more than it may."""
    may = {name: 1.001 / held_out if held_out and name == ACCURACY else TOLERANCE for name in apart}
    return [
        f"{name} is {number:.2g}, and may be {may[name]:.2g}: these are different trainings"
        for name, number in apart.items()
        if not number <= may[name]
    ]
