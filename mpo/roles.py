"""What each kind of stage reads, by role, and whether what a plan gives it is that. Torch-free."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpo.errors import MPOError
from mpo.stage_graph import PlannedStage, Source

Thing = Literal["pairs", "texts", "prompts", "scores", "policy", "reward_model"]

WORDS: Mapping[Thing, str] = {
    "pairs": "preference pairs",
    "texts": "texts",
    "prompts": "prompts",
    "scores": "scores",
    "policy": "a policy",
    "reward_model": "a reward model",
}

MAIN_OUTPUT: Mapping[str, str] = {
    "hold_out": "train",
    "sft": "model",
    "reward_model": "model",
    "score": "scores",
    "dpo": "model",
    "ppo": "model",
}
"""What a stage's name alone stands for; the outputs of other kinds are named in full."""

MADE: Mapping[str, Mapping[str, Thing]] = {
    "sft": {"model": "policy"},
    "dpo": {"model": "policy"},
    "ppo": {"model": "policy"},
    "reward_model": {"model": "reward_model"},
    "score": {"scores": "scores"},
    "split": {"easy": "pairs", "difficult": "pairs", "dropped": "pairs"},
}
"""What outputs are, by kind of stage; hold_out passes on what it is given, and no role takes any other."""


MODEL_ROLES = ("policy", "backbone", "models", "reward_models")
"""Of a stage the first of these that it reads has the shape of its networks."""


@dataclass(frozen=True)
class Role:
    """An input of a stage. several: it may be a list."""

    accepts: tuple[Thing, ...]
    required: bool = True
    several: bool = False

    @property
    def words(self) -> str:
        """What the role takes, for people."""
        return " or ".join(WORDS[thing] for thing in self.accepts)


_POLICY, _REWARD_MODEL, _PAIRS = Role(("policy",)), Role(("reward_model",)), Role(("pairs",))
_BASE = _KL_BASE = Role(("policy",), required=False)

ROLES: Mapping[str, Mapping[str, Role]] = {
    "hold_out": {
        "data": Role(("pairs", "texts", "prompts")),
        "eval": Role(("pairs", "texts", "prompts"), required=False),
    },
    "sft": {"policy": _POLICY, "data": Role(("pairs", "texts")), "base": _BASE},
    "reward_model": {
        "backbone": _POLICY,
        "data": _PAIRS,
        "eval": Role(("pairs",), required=False),
        "base": _BASE,
    },
    "score": {"reward_models": Role(("reward_model",), several=True), "data": _PAIRS},
    "split": {"scores": Role(("scores",)), "data": _PAIRS},
    "dpo": {"policy": _POLICY, "reference": _POLICY, "data": _PAIRS, "base": _BASE},
    "ppo": {
        "policy": _POLICY,
        "reference": _POLICY,
        "reward_model": _REWARD_MODEL,
        "prompts": Role(("pairs", "prompts")),
        "sft": _KL_BASE,
        "base": _BASE,
    },
    "evaluate": {
        "models": Role(("policy",), several=True),
        "judge": _REWARD_MODEL,
        "reward_model": Role(("reward_model",), required=False),
        "data": _PAIRS,
        "sft": _KL_BASE,
        "dpo": _KL_BASE,
    },
}
"""Roles by kind of stage. `base` is the frozen model below adapters; `sft` of ppo, and `sft` and `dpo` of
evaluate, are what KL is measured to, and no more."""


def training_role(model: int) -> str:
    """The role of what the evaluated model of this number, from 0, was trained on.

    Whoever knows a model's lineage gives it; no plan does, as a job holds its prompts out itself.
    """
    return f"training_of_{model}"


class WrongInput(MPOError):
    """A stage is given what its role does not take. place: in the role's list."""

    code = "invalid_spec"

    def __init__(self, detail: str, *, stage: str, role: str, source: Source, place: int) -> None:
        super().__init__(detail, stage=stage, role=role)
        self.stage, self.role, self.source, self.place = stage, role, source, place


def check_inputs(stages: Sequence[PlannedStage], leaves: Mapping[Source, Thing]) -> None:
    """Raises WrongInput at the first input that is not what its role takes.

    stages: each after its inputs. leaves: what the datasets and models are that no stage makes.
    """
    things: dict[Source, Thing] = dict(leaves)
    for stage in stages:
        for role, sources in stage.inputs.items():
            for place, source in enumerate(sources):
                taken, thing = ROLES[stage.kind][role], things.get(source)
                if thing not in taken.accepts:
                    given = WORDS[thing] if thing else "something that no stage reads"
                    raise WrongInput(
                        f"{role} of {stage.kind} takes {taken.words}; this is {given}",
                        stage=stage.name,
                        role=role,
                        source=source,
                        place=place,
                    )
        _check_same_rows(stage, things)
        things |= _made(stage, things)


def _check_same_rows(stage: PlannedStage, things: Mapping[Source, Thing]) -> None:
    if stage.kind == "hold_out" and "eval" in stage.inputs:
        data, held_out = (stage.inputs[role][0] for role in ("data", "eval"))
        if things[data] != things[held_out]:
            detail = (
                f"eval of hold_out takes {WORDS[things[data]]}, as data is; this is {WORDS[things[held_out]]}"
            )
            raise WrongInput(detail, stage=stage.name, role="eval", source=held_out, place=0)


def _made(stage: PlannedStage, things: Mapping[Source, Thing]) -> dict[Source, Thing]:
    if stage.kind == "hold_out":
        passed_on = things[stage.inputs["data"][0]]
        return {Source.stage(stage.name, output): passed_on for output in ("train", "eval")}
    return {Source.stage(stage.name, output): thing for output, thing in MADE.get(stage.kind, {}).items()}
