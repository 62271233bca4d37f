"""One stage in a process of its own, for `bench.memory`: prints the peak over what imports took."""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import mpo.dpo.train
import mpo.ppo.train
import mpo.reward_model.train  # noqa: F401  # what is imported beforehand is not the stage's
from bench.memory import CONFIGS, SETTINGS, Case
from mpo.reporter import SilentReporter, StageInput, StageTask
from mpo.stages import run_stage


class Telling(SilentReporter):
    """Tells warnings alone."""

    def warn(self, message: str) -> None:
        """Where whoever runs the bench sees it."""
        sys.stderr.write(f"{message}\n")


def peak_bytes() -> int:
    """The most that this process has held, not what it was forked from: VmHWM of Linux."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024


def main() -> None:
    """Run the stage that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory_side")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--stage", choices=list(CONFIGS), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--setting", choices=list(SETTINGS), default="")
    chosen = parser.parse_args()
    imported = peak_bytes()
    case = Case(chosen.stage, chosen.model, chosen.setting)
    inputs = {role: (StageInput(role, path),) for role, path in case.folders(chosen.folder).items()}
    stage = case.planned(chosen.folder)
    with tempfile.TemporaryDirectory(prefix="mpo-bench-memory-") as output:
        run_stage(StageTask(stage.config, inputs, Path(output), stage.seed), Telling())
    print(json.dumps({"over_imports": peak_bytes() - imported, "imports": imported}))


if __name__ == "__main__":
    main()
