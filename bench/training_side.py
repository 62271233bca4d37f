"""Our side of `bench.training`: one run of the engine under the opponents' protocol, in a process of its own.

python -m bench.training_side --stage rm|dpo|ppo --pairs FILE --model DIR [--reward DIR] [--steps N]

Prints one JSON line with the opponents' keys (`bench/peers/README.md`): the same pairs, batches of as many,
steps, optimizer, schedule, precision and longest sequence. What is timed is the engine's own loop, and the
reference's log-probabilities with it.
"""

import argparse
import json
import resource
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from bench.training_data import Pairs, read_pairs, read_prompts
from bench.training_ppo import run_ppo
from mpo.config import DPOStage, RewardModelStage
from mpo.dpo.loss import PairLogprobs
from mpo.dpo.objective import PairObjective
from mpo.dpo.reference import pair_logprobs
from mpo.heap import keep_freed_memory
from mpo.packed_models import pack_where_exact, say_nothing
from mpo.policies import load_policy, load_reward_model, to_training_device
from mpo.reward_model.objective import PairRewards, PairRows
from mpo.stages import fix_randomness
from mpo.training import Objective, Training, train_step

LEARNING_RATE = 1e-4
BETA = 0.1


@dataclass
class Clock:
    """Seconds of wall and processor time since it was made."""

    wall: float = field(default_factory=time.perf_counter)
    cpu: float = field(default_factory=time.process_time)

    def read(self) -> tuple[float, float]:
        """Seconds of both."""
        return time.perf_counter() - self.wall, time.process_time() - self.cpu


@dataclass(frozen=True)
class PairRun:
    """A training of a reward model or by DPO under the protocol: its model, data and shape."""

    stage: str
    model: PreTrainedModel
    reference: PreTrainedModel | None
    data: Pairs
    steps: int
    batch: int
    seed: int

    @property
    def config(self) -> RewardModelStage | DPOStage:
        """The stage's own configuration, with the protocol's numbers."""
        shared: dict[str, Any] = {"learning_rate": LEARNING_RATE, "batch_pairs": self.batch}
        if self.stage == "rm":
            return RewardModelStage(**shared)
        return DPOStage(**shared, beta=BETA)

    def objective(self, data: Pairs, reference: PairLogprobs | None) -> Objective:
        """The loss of some pairs."""
        config = self.config
        if isinstance(config, RewardModelStage):
            ones = [1.0] * len(data.encoded)
            rows = PairRows(data.encoded, [0.0] * len(data.encoded), ones)
            return PairRewards(rows, data.pad_id, config.label_smoothing, config.centring)
        assert reference is not None
        return PairObjective(data.encoded, reference, config, data.pad_id)

    def reference_logprobs(self, data: Pairs) -> PairLogprobs | None:
        """Of all pairs; None for a reward model."""
        if self.stage == "rm":
            return None
        return pair_logprobs(self.reference or self.model, data.encoded, data.pad_id)

    def train(self) -> dict[str, Any]:
        """The run's numbers."""
        data = self.data.part(0, self.steps * self.batch)
        clock = Clock()
        reference = self.reference_logprobs(data)
        reference_seconds = clock.read()[0]
        training = Training(self.model.train(), self.objective(data, reference), self.config, self.seed)
        losses = [train_step(training)["loss"] for _ in range(self.steps)]
        seconds, cpu_seconds = clock.read()
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        useful = sum(data.useful_tokens)
        weights = matmul_parameters(self.model)
        numbers = {
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "pairs_per_second": round(len(data.encoded) / seconds, 3),
            "steps": self.steps,
            "pairs": len(data.encoded),
            "tokenize_seconds": round(self.data.tokenize_seconds, 3),
            "token_positions": useful * (2 if reference else 1),
            "useful_tokens": useful,
            "first_loss": round(losses[0], 6),
            "last_loss": round(losses[-1], 6),
            "peak_rss_mb": round(peak, 1),
            "matmul_parameters": weights,
            "useful_gflops": round(6 * weights * useful / seconds / 1e9, 2),
            "metrics": self.held_out(),
        }
        if reference is not None:
            numbers["reference_seconds"] = round(reference_seconds, 3)
            numbers["useful_gflops_with_reference"] = round(8 * weights * useful / seconds / 1e9, 2)
        return numbers

    @torch.no_grad()
    def held_out(self) -> dict[str, float]:
        """Accuracy and loss on the pairs that follow those of the training."""
        data = self.data.part(self.steps * self.batch, len(self.data.encoded))
        count = len(data.encoded)
        if not count:
            return {}
        # The reference is the model as it started: it is loaded anew for this, outside what is timed.
        reference = None
        if self.stage == "dpo":
            start = self.reference or ready(load_policy(Path(self.model.config._name_or_path)))
            reference = pair_logprobs(start, data.encoded, data.pad_id)
        loss, sums = step_of(self.objective(data, reference), self.model.eval(), count)
        return {
            "held_out_accuracy": round(sums["accuracy"] / count, 6),
            "held_out_loss": round(loss / count, 6),
        }

    @torch.no_grad()
    def parity(self) -> dict[str, Any]:
        """Loss of the first batch in the file's order."""
        data = self.data.part(0, self.batch)
        objective = self.objective(data, self.reference_logprobs(data))
        loss, _ = step_of(objective, self.model.eval(), self.batch)
        return {"loss": loss / self.batch}


def step_of(objective: Objective, model: PreTrainedModel, count: int) -> tuple[float, Mapping[str, float]]:
    """Loss and metrics of the first `count` rows, summed over as many passes as they need."""
    loss, sums = 0.0, dict[str, float]()
    for rows in objective.passes(model, range(count)):
        part, metrics = objective.losses(model, rows)
        loss += part.item()
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + value.item()
    return loss, sums


def matmul_parameters(model: PreTrainedModel) -> int:
    """Weights that take part in matrix products: a tied embedding is the language model's head."""
    whole = sum(weight.numel() for weight in model.parameters())
    embedding: Any = model.get_input_embeddings().weight
    return whole if model.can_generate() else whole - embedding.numel()


def ready(model: PreTrainedModel) -> PreTrainedModel:
    """On the device, reading packed rows where it does so exactly."""
    to_training_device(model).eval()
    pack_where_exact(model, say_nothing)
    return model


def settings(chosen: argparse.Namespace) -> dict[str, Any]:
    """What the run was told."""
    return {
        "batch": chosen.batch,
        "threads": torch.get_num_threads(),
        "precision": "fp32",
        "max_length": chosen.max_length,
        "seed": chosen.seed,
    }


def main(arguments: Sequence[str]) -> int:
    """One run; its line is the last of standard output."""
    parser = argparse.ArgumentParser(prog="python -m bench.training_side")
    parser.add_argument("--stage", choices=["rm", "dpo", "ppo"], required=True)
    parser.add_argument("--pairs", type=Path, required=True, help="gz JSON Lines of prompt, chosen, rejected")
    parser.add_argument("--model", type=Path, required=True, help="reward model (rm) or policy (dpo, ppo)")
    parser.add_argument("--reference", type=Path, help="dpo: by default the policy as it starts")
    parser.add_argument("--reward", type=Path, help="ppo: reward and initial value model")
    parser.add_argument("--critic", choices=["separate", "shared_trunk"], default="separate")
    parser.add_argument("--adapters", action="store_true", help="ppo: LoRA in place of whole weights")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--held-out", type=int, default=64)
    parser.add_argument("--max-length", type=int, default=512)
    parser.add_argument("--threads", type=int, default=0, help="0: torch's own choice")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--parity", nargs="?", const="batch", help="no training: the first batch's loss; ppo: a file"
    )
    chosen = parser.parse_args(arguments)
    imports = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    transformers.logging.disable_progress_bar()
    # As `mpo.stages.run_stage` does before it trains.
    fix_randomness(chosen.seed)
    keep_freed_memory()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    if chosen.stage == "ppo":
        numbers = run_ppo(chosen, read_prompts(chosen))
    else:
        load = load_reward_model if chosen.stage == "rm" else load_policy
        run = PairRun(
            chosen.stage,
            ready(load(chosen.model)),
            ready(load_policy(chosen.reference)) if chosen.reference else None,
            read_pairs(chosen),
            chosen.steps,
            chosen.batch,
            chosen.seed,
        )
        numbers = run.parity() if chosen.parity else run.train()
    kind = {"rm": "reward", "dpo": "dpo", "ppo": "ppo"}[chosen.stage]
    line = {
        "what": f"{kind}-{'parity' if chosen.parity else 'native'}",
        "version": f"mpo-service {version('mpo-service')}",
        "imports_mb": round(imports, 1),
    }
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps({**line, **numbers, "settings": settings(chosen), "versions": versions}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
