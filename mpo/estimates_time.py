"""How long a stage will take where nothing like it has been measured. Torch-free.

6 operations a parameter and token to train (Kaplan et al. 2020, arXiv 2001.08361, 2.1: forward 2, backward
4), 2 to run; through frozen weights a backward pass costs 2. Beside them each optimizer step, each sampled
token and each start of a process takes a time of its own, which is nearly all that small models need.
"""

from dataclasses import dataclass

from mpo.estimates_shape import ModelShape
from mpo.estimates_work import Work
from mpo.plan import PlannedStage
from mpo.training_config import TrainingConfig

OPERATIONS_A_SECOND = 3e10
"""Of the machine that is assumed: two cores of a CPU. A GPU does a hundred to a thousand times as many."""

START_SECONDS, START_WITHOUT_MODEL_SECONDS = 1.0, 0.3
STEP_SECONDS_A_LAYER, DECODING_SECONDS_A_LAYER = 0.004, 0.0015
READ_ROWS_A_SECOND = 50_000


@dataclass(frozen=True)
class Seconds:
    """How long a stage takes. measured: by past runs of its kind, else by what is assumed of a machine."""

    seconds: float
    measured: bool


def assumed_seconds(stage: PlannedStage, work: Work, shape: ModelShape | None) -> float:
    """Seconds on the assumed machine. shape: None where the stage runs no model."""
    reading = work.rows / READ_ROWS_A_SECOND
    if shape is None:
        return START_WITHOUT_MODEL_SECONDS + reading
    config = stage.config
    frozen = isinstance(config, TrainingConfig) and config.lora is not None
    operations = shape.parameters * ((4 if frozen else 6) * work.trained + 2 * (work.read + work.sampled))
    one_by_one = work.steps * STEP_SECONDS_A_LAYER + work.decodings * DECODING_SECONDS_A_LAYER
    return START_SECONDS + reading + operations / OPERATIONS_A_SECOND + one_by_one * shape.layers
