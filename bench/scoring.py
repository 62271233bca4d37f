"""Pairs scored a second by a reward model: the engine against a plain transformers loop, in turn.

python -m bench.scoring --pairs FILE --model DIR [--count 256] [--rounds 3] [--docs PAGE]

DIR: a reward model that `bench/peers/models.py` made (`reward-init`). The loop is what documentation shows:
both sequences of a pair as rows of their own, 32 rows in the file's order padded to the longest, the model's
forward. Both sides score the same token ids, and must come to the same rewards.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel

from bench.load_page import Conditions, spread, write_page_section
from bench.training_data import Pairs, read_pairs, scoring_parser
from mpo.policies import load_reward_model, to_training_device
from mpo.reward_model.score import PairScores, reward_offset

HEADING = "## Scoring pairs"
ROWS_AT_ONCE = 32
FLOOR = 3.0
TOLERANCE = 1e-4


@torch.no_grad()
def plain_loop(model: PreTrainedModel, data: Pairs) -> Tensor:
    """Rewards of both responses of each pair, (pairs, 2), by padded batches."""
    rows = [pair.prompt_ids + ids for pair in data.encoded for ids in (pair.chosen_ids, pair.rejected_ids)]
    found = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = rows[start : start + ROWS_AT_ONCE]
        longest = max(map(len, batch))
        ids = torch.tensor([row + [data.pad_id] * (longest - len(row)) for row in batch])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in batch])
        inputs = {"input_ids": ids.to(model.device), "attention_mask": mask.to(model.device)}
        found.append(model(**inputs).logits[:, 0].float().cpu())
    return torch.cat(found).view(-1, 2) - reward_offset(model)


def engine(folder: Path, data: Pairs) -> Tensor:
    """The same by the stage `score`, which loads the model and tries whether it reads packed rows."""
    scores = PairScores.start([folder], data.encoded, [0] * len(data.encoded))
    for _ in scores.run():
        pass
    return scores.rewards


def timed(score: Callable[[], Tensor]) -> tuple[float, Tensor]:
    """Seconds, and what was scored."""
    started = time.perf_counter()
    found = score()
    return time.perf_counter() - started, found


def measure(folder: Path, data: Pairs, rounds: int) -> dict[str, list[float]]:
    """Seconds of both sides, round by round; the first round, which loads what is loaded late, left out."""
    model = to_training_device(load_reward_model(folder)).eval()
    seconds: dict[str, list[float]] = {"loop": [], "engine": []}
    for number in range(rounds + 1):
        loop_seconds, expected = timed(lambda: plain_loop(model, data))
        engine_seconds, found = timed(lambda: engine(folder, data))
        apart = float((found - expected).abs().max())
        assert apart <= TOLERANCE, f"rewards are {apart} apart"
        if number:
            seconds["loop"].append(loop_seconds)
            seconds["engine"].append(engine_seconds)
    return seconds


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = scoring_parser("python -m bench.scoring", rounds=3)
    parser.add_argument("--count", type=int, default=256, dest="batch")
    parser.set_defaults(steps=1)
    chosen = parser.parse_args(arguments)
    transformers.logging.disable_progress_bar()
    conditions = Conditions.now(["python -m bench.scoring", *arguments])
    data = read_pairs(chosen)
    seconds = measure(chosen.model, data, chosen.rounds)
    ratios = [loop / ours for loop, ours in zip(seconds["loop"], seconds["engine"], strict=True)]
    ratio, pairs = statistics.median(ratios), len(data.encoded)
    rows = [
        [title, f"{pairs / statistics.median(seconds[side]):.1f}", said]
        for title, side, said in (
            ("transformers, padded batches of 32", "loop", ""),
            ("the stage `score`", "engine", spread(ratios)),
        )
    ]
    for row in rows:
        print(" | ".join(row))
    if chosen.docs:
        word = "reached" if ratio >= FLOOR else "**missed**"
        said = (
            f"{conditions.machine()}; {torch.get_num_threads()} threads, fp32. {pairs} pairs of at most 512 "
            f"tokens, {chosen.rounds} rounds; the engine's time holds loading the model. Rewards agree to "
            f"{TOLERANCE:g}. {ratio:.2f} times (floor {FLOOR:g}): {word}."
        )
        columns = ["side", "pairs/s", "the loop's time / the engine's"]
        write_page_section(chosen.docs, HEADING, conditions.command, said, [columns, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
