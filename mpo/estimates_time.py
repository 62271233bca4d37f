"""How long a stage will take where nothing like it has been measured. Torch-free.

6 operations a parameter and token to train (Kaplan et al. 2020, arXiv 2001.08361, 2.1: forward 2, backward
4), 2 to run; through frozen weights a backward pass costs 2. Beside them each optimizer step, each sampled
token and each start of a process takes a time of its own, which is nearly all that small models need.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from mpo.estimates_machine import ONE_CPU, Machine
from mpo.estimates_passes import Device, is_in_bf16
from mpo.estimates_shape import ModelShape
from mpo.estimates_work import Work
from mpo.plan import PlannedStage
from mpo.training_config import TrainingConfig

START_SECONDS, START_WITHOUT_MODEL_SECONDS = 1.0, 0.3
READ_ROWS_A_SECOND = 50_000


@dataclass(frozen=True)
class Pace:
    """What is assumed of a device. operations, in_bf16: a second, in passes of fp32 and of bf16.

    step, decoding: seconds a layer that each optimizer step and each sampled token takes besides.
    """

    operations: float
    in_bf16: float
    step: float
    decoding: float


PACES: Mapping[Device, Pace] = {
    "cpu": Pace(3e10, 3e10, step=0.004, decoding=0.0015),
    "cuda": Pace(1e13, 1e14, step=0.0005, decoding=0.0005),
}
"""Of a CPU two cores, as measured. Of a GPU, where nothing was: half of what an A100's data sheet has for
fp32 (19.5 TFLOP/s), a third of that for bf16 (312), and half a millisecond a layer."""


@dataclass(frozen=True)
class Seconds:
    """How long a stage takes. measured: by past runs of its kind, else by what is assumed of a machine."""

    seconds: float
    measured: bool


def assumed_seconds(
    stage: PlannedStage, work: Work, shape: ModelShape | None, machine: Machine = ONE_CPU
) -> float:
    """Seconds on a machine whose devices have the assumed pace. shape: None where the stage runs no model.

    Ranks share the work where each has a GPU, and evenly; those of a CPU share its cores.
    """
    reading = work.rows / READ_ROWS_A_SECOND
    if shape is None:
        return START_WITHOUT_MODEL_SECONDS + reading
    config = stage.config
    frozen = isinstance(config, TrainingConfig) and config.lora is not None
    pace = PACES[machine.device]
    # Evaluations and all sampling are in fp32 whatever the precision says.
    bf16 = (
        isinstance(config, TrainingConfig)
        and "precision" not in config.unread
        and is_in_bf16(config, machine.device)
    )
    devices = machine.ranks_of(config) if machine.device == "cuda" else 1
    in_passes = (4 if frozen else 6) * work.trained + 2 * work.read
    passes = shape.parameters * in_passes / (pace.in_bf16 if bf16 else pace.operations)
    computing = (passes + shape.parameters * 2 * work.sampled / pace.operations) / devices
    one_by_one = work.steps * pace.step + work.decodings * pace.decoding
    return START_SECONDS + reading + computing + one_by_one * shape.layers
