"""Our engine against stock TRL on the same pairs, steps and precision, side by side.

python -m bench.training --stage rm|dpo|ppo --pairs FILE --model DIR --json OUT [--rounds 3] [--docs PAGE]

MODEL is a folder that `bench/peers/models.py` made, or one of the models in it. The opponents are the scripts
of bench/peers, as they are, in environments of their own (`make bench-peers`; BENCH_ENVS says where). Equal
work comes first (`bench/equal_work.py`): the losses of the same batch must agree to 1e-4, as must those of
held-out pairs after one step. Then all sides run in turn, a yardstick before each; ratios are medians over
the rounds, with the smallest and largest. A run that had company on its cores is done again, thrice at most.
"""

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from bench.equal_work import differences, too_far_apart
from bench.load_page import Conditions
from bench.training_page import write_training
from bench.training_sides import OTHERS, STAGES, Line, Sides
from embedded.services import inherited_environment

PRECISION = "fp32"
TRIES = 3
"""Of a run that had company on its cores: the last one counts, and says so."""
BUSY, STEADY = 0.92, 0.8
"""The protocol's, of a machine that nobody else uses: an opponent's threads are busy for so much of its
seconds, as waiting ones spin; and so much of a yardstick's best rate is its mean."""


def measure(sides: Sides, rounds: int) -> dict[str, list[Line]]:
    """The lines of every side, round by round."""
    others = OTHERS.get(sides.name, {})
    lines: dict[str, list[Line]] = {"ours": [], "theirs_default": [], "theirs_tuned": []}
    lines |= {name: [] for name in others}
    imports = sides.imports_mb()
    for number in range(rounds):
        turns: list[tuple[str, Callable[[], Line]]] = [
            ("theirs_default", lambda: sides.theirs("--tuning", "default")),
            ("ours", sides.ours),
            ("theirs_tuned", lambda: sides.theirs("--tuning", "tuned")),
            *((name, partial(sides.ours, *more)) for name, more in others.items()),
        ]
        for side, run in turns if number % 2 else reversed(turns):
            line = {"imports_mb": imports} | undisturbed(sides, run, theirs=side.startswith("theirs"))
            lines[side].append(line)
            shown = f"{line['seconds']} s, {line['pairs_per_second']} pairs/s, {line['peak_rss_mb']} MiB"
            print(f"{side}: {shown}{' (had company)' if line['had_company'] else ''}", flush=True)
    return lines


def undisturbed(sides: Sides, run: Callable[[], Line], *, theirs: bool) -> Line:
    """The line of a run, after a yardstick's; run again where others were on its cores, as the protocol asks.

    had_company: whether the last try was disturbed too. One thread is never run again: there the processor's
    own time is compared.
    """
    for _ in range(TRIES):
        best, mean = sides.yardstick()
        line = run()
        # Ours may wait without spinning, so that its own share says nothing.
        busy = line["cpu_seconds"] / (line["seconds"] * line["settings"]["threads"])
        company = sides.threads != 1 and (mean < STEADY * best or (theirs and busy < BUSY))
        line |= {"matmul_gflops": best, "had_company": company}
        if not company:
            break
        print(f"had company: {busy:.0%} busy, yardstick {mean / best:.0%} of its best", flush=True)
    return line


def ratios(ours: Sequence[Line], theirs: Sequence[Line], key: str) -> list[float]:
    """Theirs over ours, round by round."""
    return [b[key] / a[key] for a, b in zip(ours, theirs, strict=True)]


def middle(lines: Sequence[Line], key: str) -> Line:
    """The run of the median time."""
    return sorted(lines, key=lambda line: float(line[key]))[len(lines) // 2]


def memory_ratio(ours: Line, theirs: Line) -> float:
    """Peaks over what a process holds after imports: ours over theirs."""
    return float((ours["peak_rss_mb"] - ours["imports_mb"]) / (theirs["peak_rss_mb"] - theirs["imports_mb"]))


def result(name: str, lines: Mapping[str, Sequence[Line]], apart: Mapping[str, float], key: str) -> Line:
    """What the JSON file holds."""
    ours, default, tuned = (lines[side] for side in ("ours", "theirs_default", "theirs_tuned"))
    over_default, over_tuned = ratios(ours, default, key), ratios(ours, tuned, key)
    ours_middle, default_middle, tuned_middle = (middle(side, key) for side in (ours, default, tuned))
    return {
        "stage": name,
        "precision": PRECISION,
        "compared": key,
        "ours": ours_middle,
        "theirs_default": default_middle,
        "theirs_tuned": tuned_middle,
        "ratio_default": statistics.median(over_default),
        "ratio_tuned": statistics.median(over_tuned),
        "ratios_default": over_default,
        "ratios_tuned": over_tuned,
        "others": {
            other: {
                "line": middle(lines[other], key),
                "ratios_default": ratios(lines[other], default, key),
                "ratios_tuned": ratios(lines[other], tuned, key),
            }
            for other in OTHERS.get(name, {})
        },
        "memory_ratio_default": memory_ratio(ours_middle, default_middle),
        **apart,
        "runs_with_company": sum(line["had_company"] for side in lines.values() for line in side),
        "held_out_pairs": STAGES[name].held_out,
    }


def models_folder(given: Path) -> Path:
    """The folder with all the models that a protocol needs: what was given, or what it lies in."""
    for folder in (given, given.resolve().parent):
        if (folder / "base" / "config.json").is_file():
            return folder
    raise SystemExit(
        f"{given} holds no model `base`: `bench/peers/models.py --pairs FILE --out DIR` makes it."
    )


def main(arguments: Sequence[str]) -> int:
    """Compare one stage; 1 where the sides do not do the same work."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--stage", choices=list(STAGES), required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="gz JSON Lines of prompt, chosen, rejected")
    parser.add_argument("--model", type=Path, required=True, help="folder of bench/peers/models.py")
    parser.add_argument("--json", type=Path, required=True, help="file to write")
    parser.add_argument("--docs", type=Path, help="page whose section to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="by default the protocol's")
    parser.add_argument(
        "--threads", type=int, default=0, help="1 where the machine is never idle: processor time is compared"
    )
    chosen = parser.parse_args(arguments)
    conditions = Conditions.now(["python -m bench.training", *arguments])
    environments = Path(inherited_environment().get("BENCH_ENVS", ".bench-envs")).absolute()
    steps, models = chosen.steps or STAGES[chosen.stage].steps, models_folder(chosen.model)
    sides = Sides(chosen.stage, chosen.pairs, models, steps, chosen.threads, environments)
    with tempfile.TemporaryDirectory(prefix="mpo-bench-training-") as folder:
        apart = differences(sides, Path(folder))
    print(", ".join(f"{name} {number:.1e}" for name, number in apart.items()), flush=True)
    if told := too_far_apart(apart, STAGES[chosen.stage].held_out):
        print("\n".join(told), file=sys.stderr)
        return 1
    lines = measure(sides, chosen.rounds)
    found = result(chosen.stage, lines, apart, "cpu_seconds" if chosen.threads == 1 else "seconds")
    chosen.json.parent.mkdir(parents=True, exist_ok=True)
    chosen.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(
        f"TRL / ours: default {found['ratio_default']:.2f}, tuned {found['ratio_tuned']:.2f}; "
        f"memory {found['memory_ratio_default']:.2f} of the default's"
    )
    if chosen.docs:
        write_training(chosen.docs, conditions, found)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
