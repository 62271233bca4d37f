"""The sides that `bench.training` compares: the engine, and the opponents' scripts as they are."""

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embedded.services import inherited_environment

PEERS = Path(__file__).parent / "peers"
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

    def yardstick(self) -> tuple[float, float]:
        """The best and the mean rate of a large matrix product, in GFLOP/s."""
        line = self._run([sys.executable, str(PEERS / "yardstick.py"), *self._threads()])
        return float(line["square_2048"]["best"]), float(line["square_2048"]["mean"])

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
