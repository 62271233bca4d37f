"""What each part of the engine's speed is worth: reward-model steps with one of them turned off, in turn.

python -m bench.engine_parts --pairs FILE --model DIR [--steps 5] [--rounds 3] [--docs PAGE]

DIR: a reward model that `bench/peers/models.py` made (`reward-init`). Every variant makes the same steps on
the same pairs from the same weights, in a process of its own, and must come to the same loss. A row shows the
time of the variant over that of the whole engine in the same round: median, smallest and largest.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from multiprocessing import get_context
from unittest import mock

import torch
import transformers
from transformers import PreTrainedModel

from bench.load_page import Conditions, spread, write_page_section
from bench.training_data import read_pairs, scoring_parser
from bench.training_side import PairRun
from mpo.heap import keep_freed_memory
from mpo.packed_models import pack_where_exact, say_nothing
from mpo.packed_rows import Family, PackedRow
from mpo.policies import load_reward_model, to_training_device
from mpo.replaced_layers import KINDS
from mpo.training import Training, train_step

HEADING = "## What each part of the engine is worth"
LOSS_TOLERANCE = 1e-4
PARTS = {
    "padded batches, each prompt with either response": "packed rows",
    "each prompt with either response, in packed rows": "prompts once a pair",
    "the last layer at every token": "last layer where it is read",
    "torch's attention, response by response": "attention by blocks",
    "the model's own root-mean-square norm": "norm",
    "the model's own attention around the products, asked from every token": "attention",
    "the model's own gated part": "feed-forward part",
    "norm and gated part the model's own, compiled by torch.compile": "norm and feed-forward part",
    "AdamW weight by weight": "fused AdamW",
    "freed memory given back to the system": "freed memory kept",
}


COMPILED = PARTS["norm and gated part the model's own, compiled by torch.compile"]


class Apart:
    """Packed rows in which every response has its prompt for itself."""

    @staticmethod
    def of(families: Sequence[Family], device: torch.device) -> PackedRow:
        """As `PackedRow.of`; the responses keep their order."""
        return PackedRow.of([Family(prompt, [one]) for prompt, many in families for one in many], device)


@contextmanager
def without(part: str | None, model: PreTrainedModel) -> Iterator[None]:
    """The engine on a model that was just loaded, but for one part."""
    with ExitStack() as stack:
        off = ("norm", "feed-forward part") if part == COMPILED else (part,)
        others = {name: kind for name, kind in KINDS.items() if name not in off}
        stack.enter_context(mock.patch("mpo.replaced_layers.KINDS", others))
        if part != "packed rows":
            pack_where_exact(model, say_nothing)
        if part == COMPILED:
            compile_own(model)
        if part == "prompts once a pair":
            stack.enter_context(mock.patch("mpo.reward_model.score.PackedRow", Apart))
        if part == "last layer where it is read":
            everywhere = mock.patch("mpo.packed_models.last_layer_at", return_value=nullcontext())
            stack.enter_context(everywhere)
        if part == "attention by blocks":
            never = mock.patch("mpo.packed_attention.takes_blocks", return_value=False)
            stack.enter_context(never)
        yield


def has_compiler() -> bool:
    """Whether torch.compile can make anything for a CPU."""
    return any(shutil.which(name) for name in ("g++", "clang++"))


def compile_own(model: PreTrainedModel) -> None:
    """Has the model's own norms and gated parts run as torch.compile makes them, for any number of tokens."""
    for layer in model.modules():
        if "forward" not in vars(layer) and any(KINDS[name](layer) for name in ("norm", "feed-forward part")):
            layer.forward = torch.compile(layer.forward, dynamic=True)


def run(chosen: argparse.Namespace, part: str | None) -> tuple[float, float]:
    """`steps` in a process of its own: what it has allocated before changes what it allocates next."""
    with ProcessPoolExecutor(1, get_context("spawn")) as process:
        return process.submit(steps, chosen, part).result()


def steps(chosen: argparse.Namespace, part: str | None) -> tuple[float, float]:
    """Seconds of the steps after the first, and the last one's loss."""
    transformers.logging.disable_progress_bar()
    if part != "freed memory kept":
        keep_freed_memory()
    model = to_training_device(load_reward_model(chosen.model)).eval()
    with without(part, model):
        side = PairRun("rm", model, None, read_pairs(chosen), chosen.steps, chosen.batch, 0)
        training = Training(model.train(), side.objective(side.data, None), side.config, 0)
        if part == "fused AdamW":
            weights, rate = training.trained().values(), side.config.learning_rate
            training.optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0, fused=False)
        train_step(training)  # loads what is loaded late
        started = time.perf_counter()
        losses = [train_step(training)["loss"] for _ in range(chosen.steps - 1)]
        return time.perf_counter() - started, losses[-1]


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = scoring_parser("python -m bench.engine_parts", rounds=3)
    parser.add_argument("--steps", type=int, default=5, help="the first of which is not timed")
    parser.set_defaults(batch=16)
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.engine_parts", *arguments])
    parts = {title: part for title, part in PARTS.items() if part != COMPILED or has_compiler()}
    if len(parts) < len(PARTS):
        print("without the row of torch.compile: there is no C++ compiler here", flush=True)
    ratios: dict[str, list[float]] = {title: [] for title in parts}
    for _ in range(chosen.rounds):
        whole, expected = run(chosen, None)
        for title, part in parts.items():
            seconds, loss = run(chosen, part)
            assert abs(loss - expected) <= LOSS_TOLERANCE, f"{title}: loss {loss}, not {expected}"
            ratios[title].append(seconds / whole)
    rows = [
        [title, part, spread(found)]
        for (title, part), found in zip(parts.items(), ratios.values(), strict=True)
    ]
    for row in rows:
        print(" | ".join(row))
    if chosen.docs:
        said = (
            f"{conditions.machine()}; {torch.get_num_threads()} threads. {chosen.steps - 1} steps of a "
            f"reward model, {chosen.batch} pairs each, after one that is not timed; {chosen.rounds} rounds. "
            f"All variants come to the same loss to {LOSS_TOLERANCE:g}."
        )
        columns = ["turned back", "part that is off", "time over the whole engine's"]
        write_page_section(chosen.docs, HEADING, conditions.command, said, [columns, *rows])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
