"""Tokens a second through the whole service against transformers' `generate`, on equal work.

python -m bench.sampling [--model DIR] [--rounds 3] [--seconds 8] [--docs PAGE]

Greedy answers to the same prompts with the same limits, so that both sides give the same texts, which is
asserted. Ours: HTTP requests to a stack that `mpo up` starts, 1, 8 and 32 at a time. Theirs, in this process:
`generate` one prompt by one, and in static batches of as many. Both sides in turn (A B A B …); a row shows
medians, and the median of the ratios with the smallest and largest. Last, the sampler's memory over 1,000
requests to five models of which two have room.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

import examples
from bench.load_page import Conditions, spread, write_page_section
from bench.load_stack import running_stack
from bench.sampling_memory import memory_row
from bench.sampling_sides import Generate, Service, Work

HEADING = "## Tokens a second of sampled text"
TINY = Path(examples.__file__).parent / "tiny"
AT_ONCE = (1, 8, 32)
PROMPTS = 64
LIMITS = (16, 96, 32, 64)
"""Tokens an answer may have, in turn: who batches statically waits for the longest of a batch."""
STREAMS = 128
SHARED_CHARACTERS = 600
COLUMNS = ("what", "ours", "theirs", "ratio (smallest, largest)")


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(prog="python -m bench.sampling")
    parser.add_argument("--model", type=Path, default=TINY, help="folder of a policy")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0, help="of each measurement")
    parser.add_argument("--docs", type=Path, help="page whose section to write")
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.sampling", *arguments])
    work, theirs = make_work(), Generate(chosen.model)
    rows: list[list[str]] = []
    with tempfile.TemporaryDirectory(prefix="mpo-sampling-") as folder:
        with running_stack(Path(folder) / "one", MPO_MODELS=str(chosen.model.resolve())) as stack:
            ours = Service(stack, chosen.model.name)
            differing = [i for i, (p, n) in enumerate(zip(work.prompts, work.limits, strict=True))
                         if ours.text(p, n) != theirs.text(p, n)]  # fmt: skip
            assert not differing, f"other texts than generate's: prompts {differing}"
            for at_once in AT_ONCE:
                rows += _compare(ours, theirs, work, at_once, chosen.rounds, chosen.seconds)
            rows += [_first_token_row(ours, work, at_once) for at_once in (1, 32)]
            rows.append(_prefix_row(ours, work))
        rows.append(memory_row(Path(folder) / "two", chosen.model))
        _tell(rows[-1])
    if chosen.docs is not None:
        said = (
            f"{conditions.machine()}. Model `{chosen.model.name}`, {len(work)} prompts, answers of "
            f"{min(LIMITS)} to {max(LIMITS)} tokens, greedy, the texts equal on both sides; {chosen.rounds} "
            f"rounds of {chosen.seconds:g} s a side in turn; `generate` on {torch.get_num_threads()} "
            "threads, ours on the same cores with API, Redis and workers beside the sampler."
        )
        write_page_section(chosen.docs, HEADING, conditions.command, said, [COLUMNS, *rows])
    return 0


def make_work() -> Work:
    """Prompts of many lengths, made of the example prompts."""
    lines = (TINY.parent / "prompts.jsonl").read_text().splitlines()
    texts = [str(json.loads(line)["prompt"]) for line in lines]
    prompts = ["\n".join(texts[(i + j) % len(texts)] for j in range(1 + i % 3)) for i in range(PROMPTS)]
    return Work(prompts, [limit for limit, _ in zip(itertools.cycle(LIMITS), prompts, strict=False)])


def _compare(
    ours: Service, theirs: Generate, work: Work, at_once: int, rounds: int, seconds: float
) -> list[list[str]]:
    opponents = {"one by one": 1} | ({f"in batches of {at_once}": at_once} if at_once > 1 else {})
    here: list[float] = []
    there: dict[str, list[float]] = {name: [] for name in opponents}
    ours.tokens_a_second(work, at_once, seconds / 4)
    for _ in range(rounds):
        here.append(ours.tokens_a_second(work, at_once, seconds))
        for name, batch in opponents.items():
            there[name].append(theirs.tokens_a_second(work, batch, seconds))
    rows = []
    for name, found in there.items():
        ratios = [a / b for a, b in zip(here, found, strict=True)]
        what = f"tokens a second, {at_once} at once; `generate` {name}"
        rows.append(
            [what, f"{statistics.median(here):.0f}", f"{statistics.median(found):.0f}", spread(ratios)]
        )
        _tell(rows[-1])
    return rows


def _first_token_row(ours: Service, work: Work, at_once: int) -> list[str]:
    found = sorted(ours.first_token_seconds(work, at_once, STREAMS))
    p50, p95 = (1000 * found[int(share * len(found))] for share in (0.5, 0.95))
    row = [
        f"ms to the first token of a stream, {at_once} at once: p50, p95",
        f"{p50:.0f}, {p95:.0f}",
        "–",
        "–",
    ]
    _tell(row)
    return row


def _prefix_row(ours: Service, work: Work) -> list[str]:
    """The first token after a prompt whose beginning has been read before, against one that is new."""
    new: list[float] = []
    known: list[float] = []
    shared = "\n".join(work.prompts)
    for number in range(16):
        opening = f"{number} {shared[7 * number :]}"[:SHARED_CHARACTERS]
        for tail, found in ((" a", new), (" b", known)):
            began = time.perf_counter()
            ours.text(opening + tail, 1)
            found.append(time.perf_counter() - began)
    ratios = [a / b for a, b in zip(new, known, strict=True)]
    row = [
        f"ms to one token after {SHARED_CHARACTERS} characters: begun like an earlier prompt, new",
        f"{1000 * statistics.median(known):.1f}",
        f"{1000 * statistics.median(new):.1f}",
        spread(ratios),
    ]
    _tell(row)
    return row


def _tell(row: Sequence[str]) -> None:
    print(" | ".join(row), flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
