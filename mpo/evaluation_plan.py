"""What a plan writes into an evaluation's configuration: its inputs' names, and the judge's independence.

Both are in what an evaluation reports, so that both are in its key. Torch-free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from mpo.config import EvaluateStage
from mpo.spec_places import spec_error
from mpo.stage_edges import PlaceOf
from mpo.stage_graph import Lineage, PlannedStage, Source, lineages

NAMED_ROLES = ("models", "judge", "sft", "dpo")
"""Inputs that a report and its samples call by name."""

NO_CLAIM = EvaluateStage.model_fields["judge_independence"].default


def settled_evaluations(stages: Sequence[PlannedStage], place_of: PlaceOf) -> list[PlannedStage]:
    """The stages with what the plan knows of each evaluation written into it.

    stages: each after its inputs. Raises InvalidSpec where a caller claims an independence that is not there.
    """
    behind = lineages(stages)
    settled = []
    for stage in stages:
        if isinstance(stage.config, EvaluateStage):
            found = judge_independence(stage, stages, behind)
            claimed = stage.config.judge_independence
            if claimed not in (NO_CLAIM, found) and not (claimed == "other_data" and found is None):
                raise spec_error(
                    f"the plan finds {found or NO_CLAIM}: leave this out, or give the judge other data",
                    place_of(stage, "judge_independence"),
                )
            known: dict[str, Any] = {"judge_independence": found or claimed, "names": input_names(stage)}
            stage = replace(stage, config=stage.config.model_copy(update=known))
        settled.append(stage)
    return settled


def input_names(stage: PlannedStage) -> dict[str, list[str]]:
    """The names of an evaluation's inputs, by role, in order."""
    return {
        role: [source.name for source in stage.inputs[role]] for role in NAMED_ROLES if role in stage.inputs
    }


def judge_independence(
    stage: PlannedStage, stages: Sequence[PlannedStage], behind: Mapping[str, Lineage]
) -> str | None:
    """other_data where the judge shares no dataset with what was trained against, else other_seed.

    None where no stage of the plan makes one of them, so that nobody here knows what it has seen.
    """
    trained_against = [*stage.inputs.get("reward_model", ())]
    for other in stages:
        trained_against += other.inputs["reward_model"] if other.kind == "ppo" else ()
    judge = stage.inputs["judge"][0]
    if judge in trained_against:
        return "other_seed"
    if any(source.kind != "stage" for source in [judge, *trained_against]):
        return None
    seen = frozenset[Source]().union(*(behind[source.name].seen for source in trained_against))
    apart = bool(trained_against) and not behind[judge.name].seen & seen
    return "other_data" if apart else "other_seed"
