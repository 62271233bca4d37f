"""What a dry run says of a stage's memory against what the stage then took, on models of three sizes.

python -m bench.memory --pairs FILE [--stages rm,dpo,ppo] [--models tiny,9M,44M] [--docs PAGE]

FILE is gz JSON Lines of prompt, chosen, rejected. Models are Llamas of random weights with the tokenizer of
`tiny`. Every measurement is a process of its own that runs the whole stage, as a worker does; its peak is
taken over what it held once everything was imported, and so is the estimate.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.load_page import Conditions, write_page_section
from bench.memory_models import SHAPES, write_models, write_rows_of
from mpo.config import DPOStage, PPOStage, RewardModelStage
from mpo.estimates_memory import PROCESS_BYTES, stage_memory
from mpo.estimates_rows import Rows
from mpo.estimates_shape import read_shape
from mpo.estimates_work import longest
from mpo.lengths import named_context, resolve_lengths, text_settings
from mpo.plan import PlannedStage, Source
from mpo.token_counts import count_tokens, sample_rows

MIB = 2**20
HEADING = "## Memory of packed rows"
COLUMNS = ("stage", "model", "setting", "estimate, MiB", "measured, MiB", "estimate / measured")
STEPS = 3
CONFIGS: Mapping[str, Any] = {
    "rm": RewardModelStage(max_steps=STEPS),
    "dpo": DPOStage(max_steps=STEPS),
    "ppo": PPOStage(episodes=64, rollout_prompts=32, epochs=1, max_new_tokens=32),
}
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "": {},
    "gradient_checkpointing": {"gradient_checkpointing": True},
    "lora": {"lora": {"rank": 16}},
}
DATA, MODEL = Source.dataset("data"), Source.model("model")


@dataclass(frozen=True)
class Case:
    """One stage on one model, with one setting of `SETTINGS`."""

    stage: str
    model: str
    setting: str

    def planned(self, folder: Path) -> PlannedStage:
        """The stage with its lengths set."""
        context = named_context(text_settings(folder / self.model / "config.json"))
        assert context is not None
        config = type(CONFIGS[self.stage]).model_validate(
            CONFIGS[self.stage].model_dump() | SETTINGS[self.setting]
        )
        inputs = {role: (source,) for role, source in self._roles().items()}
        return PlannedStage(self.stage, resolve_lengths(config, context), inputs, 0)

    def folders(self, folder: Path) -> dict[str, Path]:
        """Where the inputs of each role lie."""
        model = folder / self.model
        scores = folder / f"{self.model}-scores"
        where = {DATA: folder / "rows.parquet", MODEL: model}
        return {role: scores if role == "reward_model" else where[s] for role, s in self._roles().items()}

    def _roles(self) -> dict[str, Source]:
        return {
            "rm": {"backbone": MODEL, "data": DATA},
            "dpo": {"policy": MODEL, "reference": MODEL, "data": DATA},
            "ppo": {"policy": MODEL, "reference": MODEL, "reward_model": MODEL, "prompts": DATA},
        }[self.stage]


def estimate(case: Case, folder: Path) -> int:
    """Bytes over what a process holds after imports."""
    stage, sampled = case.planned(folder), sample_rows(folder / "rows.parquet")
    counted = count_tokens(sampled, folder / case.model)
    at = longest(stage, {DATA: Rows.of(DATA, sampled)}, lambda _source: counted)
    return stage_memory(stage, read_shape(folder / case.model), at) - PROCESS_BYTES


def measure(case: Case, folder: Path) -> int:
    """Bytes of the process at its peak over those after imports."""
    module = [sys.executable, "-m", "bench.memory_side", "--folder", str(folder)]
    asked = ["--stage", case.stage, "--model", case.model, "--setting", case.setting]
    done = subprocess.run([*module, *asked], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return int(json.loads(done.stdout.splitlines()[-1])["over_imports"])


def main(arguments: Sequence[str]) -> int:
    """Measure, print, and write the page's section where one is named."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--pairs", type=Path, required=True)
    parser.add_argument("--stages", default=",".join(CONFIGS))
    parser.add_argument("--models", default=",".join(SHAPES))
    parser.add_argument("--settings", default=",", help="of: gradient_checkpointing, lora; empty = none")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--docs", type=Path)
    chosen = parser.parse_args(arguments)
    named = [chosen.pairs.name if argument == str(chosen.pairs) else argument for argument in arguments]
    conditions = Conditions.now(["python -m bench.memory", *named])
    settings = list(dict.fromkeys(chosen.settings.split(",")))
    rows = []
    with tempfile.TemporaryDirectory(prefix="mpo-bench-memory-") as name:
        folder = Path(name)
        write_models(folder, chosen.models.split(","))
        write_rows_of(chosen.pairs, chosen.rows, folder / "rows.parquet")
        for model in chosen.models.split(","):
            for stage in chosen.stages.split(","):
                for setting in settings:
                    case = Case(stage, model, setting)
                    said, found = estimate(case, folder) / MIB, measure(case, folder) / MIB
                    row = [stage, model, setting or "–", f"{said:.0f}", f"{found:.0f}", f"{said / found:.2f}"]
                    rows.append(row)
                    print(" | ".join(row), flush=True)
    if chosen.docs:
        write_page_section(
            chosen.docs, HEADING, conditions.command, said_of(conditions, rows), [COLUMNS, *rows]
        )
    return 0


def said_of(conditions: Conditions, rows: Sequence[Sequence[str]]) -> str:
    """What the numbers come to."""
    ratios = [float(row[-1]) for row in rows]
    within = sum(1 / 1.2 <= ratio <= 1.2 for ratio in ratios)
    return (
        f"{conditions.machine()}. Peak of the process over what it held after imports, estimated "
        f"and measured; {STEPS} steps of 16 pairs, or two iterations of PPO with 32 episodes each. {within} "
        f"of {len(ratios)} are within 20 %; the ratios lie between {min(ratios):.2f} and {max(ratios):.2f}."
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
