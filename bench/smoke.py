"""Runs nearly every benchmark once, as small as it goes, on the example model and pairs: that it still runs.

python -m bench.smoke [NAME …]

Its figures say nothing: the documented ones come from the commands beside them in docs/. `bench.training`
needs the opponents' environments (`make bench-training`); `bench.service_overhead` trains the demo's job
several times. Neither is here.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from embedded.services import inherited_environment

EXAMPLES = Path(__file__).parents[1] / "examples"
PAIRS, TINY = str(EXAMPLES / "pairs.jsonl.gz"), str(EXAMPLES / "tiny")
SHORT = ("--rounds", "1")
REWARD = "REWARD"
"""Stands for the folder of a reward model, trained for it."""
SMOKES: Mapping[str, Sequence[str]] = {
    "pair_engines": (*SHORT, "--pairs", "32"),
    "engine_parts": ("--pairs", PAIRS, "--model", REWARD, *SHORT, "--steps", "2"),
    "data_growth": ("--pairs", PAIRS, "--sizes", "100", "400", *SHORT),
    "reporting": ("--pairs", PAIRS, *SHORT),
    "scoring": ("--pairs", PAIRS, "--model", REWARD, *SHORT, "--count", "64"),
    "memory": ("--pairs", PAIRS, "--stages", "rm", "--models", "tiny", "--rows", "48"),
    "estimates": ("--pairs", "60"),
    "claim_latency": ("--runs", "5"),
    "validation": ("--megabytes", "20", *SHORT),
    "event_streams": ("--readers", "50", *SHORT),
    "load": ("--seconds", "1", "--only", "poll"),
    "sampling": (*SHORT, "--seconds", "1"),
    "sampling_beside_training": ("--windows", "1", "--seconds", "3"),
}
METHOD = {"type": "reward_model", "reward_model": {"max_steps": 4, "on_weak": "warn"}}


def reward_model(folder: Path) -> Path:
    """A reward model of the example model, trained for a few steps."""
    (folder / "spec.json").write_text(json.dumps({"method": METHOD}), encoding="utf-8")
    asked = [str(folder / "spec.json"), "--pairs", PAIRS, "--model", TINY, "--out", str(folder / "out")]
    if status(["mpo", "run", *asked]):
        raise SystemExit("There is no reward model to run the benchmarks on.")
    return folder / "out" / "reward_model" / "model"


def run(name: str, arguments: Sequence[str]) -> bool:
    """One benchmark; whether it came to its end."""
    started = time.monotonic()
    ended = status([f"bench.{name}", *arguments])
    word = f"ended with {ended}" if ended else "ran"
    print(f"{name}: {word}, {time.monotonic() - started:.0f} s", flush=True)
    return not ended


def status(module: Sequence[str]) -> int:
    """How a module ended; what it printed is shown where that is not 0."""
    command = [sys.executable, "-m", *module]
    done = subprocess.run(command, env=inherited_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        print(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}", file=sys.stderr)
    return done.returncode


def main(arguments: Sequence[str]) -> int:
    """Run all, or those that are named; 1 where one did not come to its end."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.smoke",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(SMOKES)}; by default all")
    chosen = parser.parse_args(arguments)
    if unknown := sorted(set(chosen.names) - SMOKES.keys()):
        parser.error(f"there is no benchmark {', '.join(unknown)}")
    with tempfile.TemporaryDirectory(prefix="mpo-bench-smoke-") as folder:
        model = str(reward_model(Path(folder)))
        ran = [
            run(name, [model if each == REWARD else each for each in SMOKES[name]])
            for name in chosen.names or SMOKES
        ]
    return 0 if all(ran) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
