"""What a DPO training consists of between two steps, and how it is kept.

Every checkpoint holds the pass, the reference's log-probabilities of its pairs, and whose they are; from a
pass's first step on the engine adds its own state. Before that step, in all passes but the first, the policy
as it stands is there instead: in the first pass it is the stage's input.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import nn

from mpo.adapters import Opened
from mpo.checkpoints import load_state, save_state
from mpo.config import DPOStage
from mpo.dpo.curriculum import Pass
from mpo.dpo.loss import PairLogprobs
from mpo.errors import ReferenceChanged
from mpo.ragged_pairs import take_pairs
from mpo.ranks import ALONE, Ranks
from mpo.tokenization import EncodedPair
from mpo.training import TrainingOutcome

PASS_FILE, POLICY_FILE = "pass.safetensors", "policy.safetensors"


@dataclass
class DPOTraining:
    """A training between two steps.

    pairs: all of the stage. reference_sha256: digest of the reference's weights. reference: the
    log-probabilities of the current pass's pairs by its reference, once they are computed. outcomes: of the
    passes that have ended.
    """

    config: DPOStage
    opened: Opened
    pad_id: int
    pairs: Sequence[EncodedPair]
    passes: Sequence[Pass]
    reference_sha256: str
    ranks: Ranks = ALONE
    reference: PairLogprobs | None = None
    outcomes: list[TrainingOutcome] = field(default_factory=list)

    @property
    def current(self) -> Pass:
        """The pass that is next or under way."""
        return self.passes[len(self.outcomes)]

    def current_pairs(self) -> Sequence[EncodedPair]:
        """The pairs of the current pass."""
        return take_pairs(self.pairs, self.current.rows)

    @property
    def pass_config(self) -> DPOStage:
        """The configuration of the current pass: it takes its own steps."""
        return self.config.model_copy(update={"max_steps": self.current.steps})

    @property
    def steps_before(self) -> int:
        """Optimizer steps of the passes that have ended."""
        return sum(outcome.steps for outcome in self.outcomes)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of all passes."""
        return sum(part.steps for part in self.passes)

    def trained(self) -> Mapping[str, nn.Parameter]:
        """The parameters in training, by name."""
        return {name: p for name, p in self.opened.model.named_parameters() if p.requires_grad}


def save_pass(training: DPOTraining, folder: Path) -> None:
    """Keeps which pass it is and its reference's log-probabilities: what every checkpoint holds."""
    reference = training.reference
    state = {
        "reference_sha256": training.reference_sha256,
        "outcomes": [asdict(outcome) for outcome in training.outcomes],
        "reference": None if reference is None else reference._asdict(),
    }
    save_state(folder / PASS_FILE, state)


def save_start(training: DPOTraining, folder: Path) -> None:
    """Keeps a training whose current pass has taken no step yet."""
    save_pass(training, folder)
    if training.outcomes:
        policy = {name: p.detach() for name, p in training.trained().items()}
        save_state(folder / POLICY_FILE, policy)


@torch.no_grad()
def restore(training: DPOTraining, folder: Path) -> None:
    """Puts a training back to what was kept, but for an engine's own state. Raises ReferenceChanged."""
    state = load_state(folder / PASS_FILE)
    if state["reference_sha256"] != training.reference_sha256:
        raise ReferenceChanged(
            f"The checkpoint was made with the reference {state['reference_sha256'][:12]}… (digest of its "
            f"weights), and the one given now is {training.reference_sha256[:12]}…. Resume with the one that "
            "the training began with, or begin anew.",
            kept=state["reference_sha256"],
            given=training.reference_sha256,
        )
    training.outcomes = [TrainingOutcome(**outcome) for outcome in state["outcomes"]]
    training.reference = PairLogprobs(**state["reference"]) if state["reference"] else None
    if (folder / POLICY_FILE).exists():
        policy = load_state(folder / POLICY_FILE)
        for name, parameter in training.trained().items():
            parameter.copy_(policy[name])
