"""Whether a dataset has rows and prompts enough for what a job does: told at submit, where it can be."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from app.jobs.leaves import Leaves, Loc
from core.errors import Unprocessable
from core.states import DatasetState
from core.storage import storage
from core.tables import Dataset
from mpo.config import DPOStage, HoldOutStage, RewardModelStage, ScoreStage, SFTStage
from mpo.errors import TooFewPrompts
from mpo.plan import PlannedStage, Source

LARGEST_READ = 20_000
"""Rows of a dataset whose groups are counted before it answers; in more, too few groups are hardly thinkable,
and the hold-out itself refuses them."""


PASSED_ON = {"data": "train", "eval": "eval"}
"""What becomes of a hold-out's inputs, where it holds nothing else out."""


class TooFewPromptsHere(Unprocessable):
    """The dataset's prompts form too few groups."""

    code, title = "too_few_prompts", "Too few prompts"


class TooFewRowsHere(Unprocessable):
    """The dataset holds a single row, which a stage would train on."""

    code, title = "too_few_rows", "Too few rows"


def refuse_lone_rows(leaves: Leaves, stages: Sequence[PlannedStage], named: Mapping[Source, Loc]) -> None:
    """Raises TooFewRowsHere where a stage would train on one row. named: where the spec names each dataset.

    Datasets that are not read yet pass, and what is left of others by a fold or a split: the stage itself
    refuses them.
    """
    lone = {source: source for source, dataset in leaves.datasets.items() if dataset.rows == 1}
    for stage in stages:
        of_role = {role: lone[s] for role, sources in stage.inputs.items() for s in sources if s in lone}
        if isinstance(stage.config, HoldOutStage):
            lone |= {Source.stage(stage.name, PASSED_ON[role]): leaf for role, leaf in of_role.items()}
        elif isinstance(stage.config, SFTStage | RewardModelStage | DPOStage) and "data" in of_role:
            data = of_role["data"]
            raise TooFewRowsHere(
                f"{data.name} holds a single row, and {stage.name} cannot train on one: give it two or more",
                loc=named[data],
            )


def refuse_too_few_prompts(
    leaves: Leaves, stages: Sequence[PlannedStage], loc_of: Callable[[PlannedStage, str], Loc]
) -> None:
    """Raises TooFewPromptsHere where nothing can be held out, or fewer groups are left than folds.

    loc_of: where the spec writes a field of a stage. Datasets that are not read yet, or large, pass.
    """
    left: dict[Source, int] = {}
    for stage in stages:
        if isinstance(stage.config, HoldOutStage):
            sizes = _sizes(leaves.datasets.get(stage.inputs["data"][0]))
            if sizes is not None:
                held = _held_out(stage, stage.config, sizes, loc_of(stage, "fraction"))
                left[Source.stage(stage.name, "train")] = len(sizes) - held
        elif isinstance(stage.config, ScoreStage) and stage.config.scheme != "in_sample":
            groups, needed = left.get(stage.inputs["data"][0]), stage.config.folds
            if groups is not None and groups < needed:
                # held_out has no folds to choose: its two are the half that trains and the half scored.
                held_out = stage.config.scheme == "held_out"
                who = (
                    f"held_out needs at least {needed}"
                    if held_out
                    else f"{needed} folds need at least as many"
                )
                raise TooFewPromptsHere(
                    f"{who} prompt groups; {groups} are left for training",
                    loc=loc_of(stage, "scheme" if held_out else "folds"),
                )


def _held_out(stage: PlannedStage, config: HoldOutStage, sizes: Mapping[bytes, int], loc: Loc) -> int:
    from mpo.hold_out import held_out_groups

    if "eval" in stage.inputs or config.fraction == 0:
        return 0
    try:
        return len(held_out_groups(sizes, config.fraction))
    except TooFewPrompts as error:
        raise TooFewPromptsHere(error.detail, loc=loc) from error


def _sizes(dataset: Dataset | None) -> Mapping[bytes, int] | None:
    """Rows of each prompt group; None where the dataset is not read yet, or large."""
    if dataset is None or dataset.status != DatasetState.READY or dataset.rows_location is None:
        return None
    return None if (dataset.rows or 0) > LARGEST_READ else _group_sizes(dataset.rows_location)


@lru_cache(maxsize=64)
def _group_sizes(location: str) -> Mapping[bytes, int]:
    # A location's content never changes. Imported late: the server starts without pyarrow.
    from mpo.hold_out import row_keys

    with storage().open_read(location) as file:
        return Counter(row_keys(file))
