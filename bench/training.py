"""Our engine against stock TRL on the same pairs, steps and precision, side by side.

python -m bench.training --stage rm|dpo|ppo --pairs FILE --model DIR --json OUT [--rounds 3] [--docs PAGE]

MODEL is a folder that `bench/peers/models.py` made, or one of the models in it. The opponents are the scripts
of bench/peers, as they are, in environments of their own (`make bench-peers`; BENCH_ENVS says where). Equal
work comes first: the losses of the same batch must agree to 1e-4. Then all sides run in turn, a yardstick
before each; ratios are medians over the rounds, with the smallest and largest.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from bench.load_page import Conditions
from bench.training_page import write_training
from embedded.services import inherited_environment

PEERS = Path(__file__).parent / "peers"
LOSS_TOLERANCE = 1e-4
PRECISION = "fp32"
IMPORTS = """
import resource, datasets, torch, transformers, trl
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
try:
    from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer
    from trl.experimental.ppo import PPOConfig, PPOTrainer
except ImportError:
    pass
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""
Line = dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """What is trained: the opponents' script and environment, and the protocol's steps of it."""

    script: str
    environment: str
    models: tuple[str, ...]
    steps: int
    held_out: int | None


OTHERS = {
    "ppo": {"shared_trunk": ("--critic", "shared_trunk"), "lora": ("--adapters",)},
}
"""Of a stage: what the engine can do in place of it. Other algorithms than the opponents', and said so."""

STAGES = {
    "rm": Stage("trl_reward.py", "trl-new", ("reward-init",), 8, 64),
    "dpo": Stage("trl_dpo.py", "trl-new", ("base",), 6, 32),
    "ppo": Stage("trl_ppo.py", "trl-ppo", ("base", "reward"), 2, None),
}


@dataclass(frozen=True)
class Sides:
    """The sides of one stage, each a process of its own, run one after another."""

    name: str
    pairs: Path
    models: Path
    steps: int
    threads: int
    environments: Path

    @property
    def stage(self) -> Stage:
        """What is trained."""
        return STAGES[self.name]

    def ours(self, *more: str) -> Line:
        """A run of the engine."""
        module = [sys.executable, "-m", "bench.training_side", "--stage", self.name]
        return self._run([*module, *self._shared(), *more])

    def theirs(self, *more: str) -> Line:
        """A run of the opponent."""
        python = self.environments / self.stage.environment / "bin" / "python"
        if not python.is_file():
            raise SystemExit(f"There is no {python}: `make bench-peers` makes the opponents' environments.")
        return self._run([str(python), str(PEERS / self.stage.script), *self._shared(), *more])

    def yardstick(self) -> float:
        """The best rate of a large matrix product, in GFLOP/s."""
        line = self._run([sys.executable, str(PEERS / "yardstick.py"), *self._threads()])
        return float(line["square_2048"]["best"])

    def loss_difference(self, folder: Path) -> float:
        """Between both sides' losses of the same batch, or of the same rollout."""
        if self.name == "ppo":
            rollout = folder / "rollout.npz"
            self.theirs("--parity", str(rollout))
            line = self.ours("--parity", str(rollout))
            return abs(line["loss"] - line["their_loss"])
        # Where policy and reference are one, the loss of DPO is ln 2 whatever a side computes.
        other = ("--reference", str(self.models / "base")) if self.name == "dpo" else ()
        model = ("--model", str(self.models / "shifted")) if self.name == "dpo" else ()
        asked = (*other, *model, "--parity", "--steps", "1", "--held-out", "0")
        return abs(self.ours(*asked)["loss"] - self.theirs(*asked)["loss"])

    def _shared(self) -> list[str]:
        stage = self.stage
        arguments = ["--pairs", str(self.pairs), "--model", str(self.models / stage.models[0])]
        arguments += ["--steps", str(self.steps), *self._threads()]
        if stage.held_out is not None:
            arguments += ["--held-out", str(stage.held_out)]
        if len(stage.models) > 1:
            arguments += ["--reward", str(self.models / stage.models[1]), "--batch", "32"]
        return arguments

    def _threads(self) -> list[str]:
        return ["--threads", str(self.threads)] if self.threads else []

    def _run(self, command: Sequence[str]) -> Line:
        environment = {**inherited_environment(), "HF_HUB_OFFLINE": "1"}
        if self.threads:
            environment["OMP_NUM_THREADS"] = str(self.threads)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        lines = [line for line in done.stdout.splitlines() if line.startswith('{"what"')]
        if done.returncode or not lines:
            raise SystemExit(f"{' '.join(command)}\n{done.stdout}\n{done.stderr}")
        found: Line = json.loads(lines[-1])
        return found

    def imports_mb(self) -> float:
        """What an opponent's process holds once it has imported its packages, in MiB."""
        python = self.environments / self.stage.environment / "bin" / "python"
        done = subprocess.run([python, "-c", IMPORTS], capture_output=True, text=True, check=True)
        return float(done.stdout.split()[-1])


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
            yardstick = sides.yardstick()
            line = {"imports_mb": imports} | run() | {"matmul_gflops": yardstick}
            lines[side].append(line)
            shown = f"{line['seconds']} s, {line['pairs_per_second']} pairs/s, {line['peak_rss_mb']} MiB"
            print(f"{side}: {shown}", flush=True)
    return lines


def ratios(ours: Sequence[Line], theirs: Sequence[Line], key: str) -> list[float]:
    """Theirs over ours, round by round."""
    return [b[key] / a[key] for a, b in zip(ours, theirs, strict=True)]


def middle(lines: Sequence[Line], key: str) -> Line:
    """The run of the median time."""
    return sorted(lines, key=lambda line: float(line[key]))[len(lines) // 2]


def memory_ratio(ours: Line, theirs: Line) -> float:
    """Peaks over what a process holds after imports: ours over theirs."""
    return float((ours["peak_rss_mb"] - ours["imports_mb"]) / (theirs["peak_rss_mb"] - theirs["imports_mb"]))


def result(name: str, lines: Mapping[str, Sequence[Line]], difference: float, key: str) -> Line:
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
        "loss_abs_diff": difference,
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
    """Compare one stage; 1 where the losses of the same batch differ."""
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
        difference = sides.loss_difference(Path(folder))
    print(f"loss of the same batch: {difference:.1e} apart", flush=True)
    if difference > LOSS_TOLERANCE:
        print(f"These are different trainings: losses may differ by {LOSS_TOLERANCE:g}.", file=sys.stderr)
        return 1
    lines = measure(sides, chosen.rounds)
    found = result(chosen.stage, lines, difference, "cpu_seconds" if chosen.threads == 1 else "seconds")
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
