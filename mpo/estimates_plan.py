"""Which stages of a run do not fit into its memory, from the files that it is given. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mpo.config import Stage
from mpo.errors import MPOError
from mpo.estimates_excess import Excess, find_excess
from mpo.estimates_machine import Machine
from mpo.estimates_memory import stage_memory
from mpo.estimates_rows import Rows, rows_by_source
from mpo.estimates_shape import read_shape
from mpo.estimates_work import are_lengths_known, longest
from mpo.plan import PlannedStage, Source
from mpo.token_counts import count_tokens, sample_rows
from mpo.training_config import TrainingConfig


def find_excesses(
    stages: Sequence[PlannedStage], files: Mapping[Source, Path], model: Path, machine: Machine, limit: int
) -> dict[str, Excess]:
    """By name and in order, the stages of a plan that are estimated to need more than `limit` bytes.

    files: canonical rows of each dataset; model: the folder that all networks descend from. Where it does not
    tell its shape, or nobody can count a stage's rows, nothing is said.
    """
    sampled = {source: sample_rows(path) for source, path in files.items()}
    try:
        shape = read_shape(model)
        lengths = {source: count_tokens(rows, model) for source, rows in sampled.items()}
    except (MPOError, OSError):  # the stages themselves say what is wrong
        return {}
    packing = replace(shape, packs=True)
    # Scores that exist tell how many rows a part has, and memory asks how long.
    rows = rows_by_source(stages, {s: Rows.of(s, each) for s, each in sampled.items()}, lambda _split: None)
    found: dict[str, Excess] = {}
    for stage in stages:
        if not isinstance(stage.config, TrainingConfig) or not are_lengths_known(stage, rows, lengths.get):
            continue

        def memory_of(config: Stage, stage: PlannedStage = stage) -> int:
            changed = replace(stage, config=config)
            return stage_memory(changed, packing, longest(changed, rows, lengths.get), machine, stages)

        excess = find_excess(stage.config, limit, memory_of)
        if excess is not None:
            found[stage.name] = excess
    return found
