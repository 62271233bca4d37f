"""Gradients and losses of a step: this rank's share of its rows, and all ranks' together."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from mpo.gradient_sums import sum_gradients
from mpo.ranks import share
from mpo.short_memory import if_it_fits

if TYPE_CHECKING:
    from mpo.training import Training

MEMORY_IS_SHORT = (
    "The device's memory did not hold a forward pass: from here on passes are half as large. The result is "
    "the same but for rounding; shorter max_prompt_tokens and max_response_tokens, or lora, need less."
)


def gradients_within_memory(training: "Training", rows: Sequence[int]) -> tuple[float, Mapping[str, float]]:
    """Leaves the gradients of a step in the weights, of every rank alike; its loss, and sums of metrics over
    the rows. Where the memory of any rank was short, the passes of all are halved, once in a training."""
    ranks = training.ranks
    part = share_of(training, rows)
    if training.in_shards:
        # One whose memory is short cannot go on by itself: the others wait for it within a pass.
        return added_up(ranks.gather_objects(accumulate_gradients(training, part)))
    if not training.halved:
        shares = ranks.gather_objects(if_it_fits(partial(accumulate_gradients, training, part)))
        fit = [share for share in shares if share is not None]
        if len(fit) < len(shares):
            training.halved = True
            training.tell(MEMORY_IS_SHORT)  # now: should half of a pass not fit either, this has been said
    if training.halved:
        fit = ranks.gather_objects(accumulate_gradients(training, part))
    sum_gradients(ranks, training.trained().values())
    return added_up(fit)


@dataclass(frozen=True)
class Share:
    """Rows of a step that one rank computes, the weight of the whole step, and the first of its rows."""

    rows: Sequence[int]
    weight: float
    first: Sequence[int]


def share_of(training: "Training", rows: Sequence[int]) -> Share:
    """This rank's of the rows of a step: not of the passes, which are too few to be dealt out evenly."""
    objective = training.objective
    weight = sum(objective.weight(row) for row in rows) or 1.0  # all weights 0: nothing to learn here
    places = share(training.ranks, [objective.lengths[row] for row in rows])
    return Share(rows[places.start : places.stop], weight, rows[:1])


def accumulate_gradients(training: "Training", part: Share) -> tuple[float, Mapping[str, float]]:
    """Leaves the gradients of a share in the weights; what it adds to the loss and to the metrics' sums."""
    objective = training.objective
    loss, sums = 0.0, dict[str, float]()
    training.optimizer.zero_grad(set_to_none=True)
    for together in passes_of_share(training, part):
        if not together:
            # In shards a pass is everybody's: layers are put together by all ranks, as often on each.
            (0.0 * objective.losses(training.model, part.first)[0]).backward()
            continue
        summed, metrics = objective.losses(training.model, together)
        (summed / part.weight).backward()
        loss += summed.item() / part.weight
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return loss, sums


def passes_of_share(training: "Training", part: Share) -> Iterable[Sequence[int]]:
    """The share's rows in forward passes; in shards as many as the largest share's, the last ones empty."""
    objective = training.objective
    passes: Iterable[Sequence[int]] = objective.passes(training.model, part.rows) if part.rows else ()
    if training.halved:
        passes = (half for rows in passes for half in halves(rows))
    if not training.in_shards:
        return passes
    passes = list(passes)
    most = max(training.ranks.gather_objects(len(passes)))
    return [*passes, *[()] * (most - len(passes))]


def added_up(shares: Sequence[tuple[float, Mapping[str, float]]]) -> tuple[float, Mapping[str, float]]:
    """Losses and sums of all ranks, in their order."""
    sums = dict[str, float]()
    for _, of_rank in shares:
        for name, value in of_rank.items():
            sums[name] = sums.get(name, 0.0) + value
    return sum(loss for loss, _ in shares), sums


def halves(rows: Sequence[int]) -> list[Sequence[int]]:
    """The rows of a pass in two passes; one row cannot be divided."""
    middle = len(rows) // 2
    return [rows[:middle], rows[middle:]] if middle else [rows]
