"""A job's plan: its stages with named inputs, their lengths, their keys, its warnings. Torch-free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from mpo.config import ScoreStage
from mpo.evaluation_plan import settled_evaluations
from mpo.explicit_stages import Leaf, expand_stages, named_leaf
from mpo.job_spec import JobSpec, Preset
from mpo.keys import InputKey, KeyParts, result_config, stage_key
from mpo.lengths import LengthsExceedContext, resolve_lengths
from mpo.presets import expand_preset
from mpo.roles import Thing, WrongInput, check_inputs
from mpo.spec_places import Place, spec_error
from mpo.stage_edges import check_edges
from mpo.stage_graph import OUTPUTS, RANK, PlannedStage, Source, dependents, lineages, ranks

__all__ = [
    "OUTPUTS",
    "RANK",
    "PlannedStage",
    "Source",
    "check_plan",
    "dependents",
    "expand",
    "plan_keys",
    "plan_warnings",
    "ranks",
    "resolve",
]

SEEN_BY_SFT = (
    "The scoring reward models start from an SFT that has seen every chosen response, also of the pairs that "
    "they score: their gaps flatter them."
)
UNKNOWN_FOLDS = (
    "The reward models of another job score here: whether they have not seen the pairs that they score, as "
    "this scheme wants, cannot be told. Train the folds in this job, on the same data."
)
TRAINED_AGAINST = (
    "The judge is a reward model that a policy was trained against, or its twin: it is not independent. "
    "Give it other data, or another seed."
)


def expand(
    spec: JobSpec, *, model: str | None, dataset: str | None, leaf: Leaf = named_leaf
) -> list[PlannedStage]:
    """The stages of a job in an order in which each comes after its inputs.

    model, dataset: names of the leaves that a preset works on. leaf: what names in explicit stages stand for
    that are no stage's. Raises InvalidSpec where explicit stages do not fit together.
    """
    if spec.method is None:
        stages = expand_stages(spec.stages or [], spec.seed, leaf)
    else:
        stages = _expanded(spec, spec.method, model, dataset)
    place_of = partial(_field_place, spec)
    check_edges(stages, place_of)
    return settled_evaluations(stages, place_of)


def _expanded(spec: JobSpec, method: Preset, model: str | None, dataset: str | None) -> list[PlannedStage]:
    if model is None or dataset is None:
        missing = "model" if model is None else "dataset"
        raise spec_error(f"a method needs a {missing}", (missing,))
    return expand_preset(spec, method, model=model, dataset=dataset)


def check_plan(spec: JobSpec, stages: Sequence[PlannedStage], leaves: Mapping[Source, Thing]) -> None:
    """Raises InvalidSpec where an input is not what its role takes. leaves: what datasets and models are."""
    try:
        check_inputs(stages, leaves)
    except WrongInput as error:
        place = _input_place(spec, error)
        raise spec_error(error.detail, place) from error


def resolve(
    spec: JobSpec,
    stages: Sequence[PlannedStage],
    context_tokens: int,
    contexts: Mapping[Source, int] | None = None,
) -> list[PlannedStage]:
    """The same plan with every open length set from the smallest context behind each stage.

    contexts: of models that no stage makes, in tokens; context_tokens: of every other. Raises InvalidSpec
    naming the field where prompt and response cannot fit it together.
    """
    behind, known = lineages(stages), contexts or {}
    resolved = []
    for stage in stages:
        context = min(
            (known.get(m, context_tokens) for m in behind[stage.name].models), default=context_tokens
        )
        try:
            resolved.append(replace(stage, config=resolve_lengths(stage.config, context)))
        except LengthsExceedContext as error:
            place = _field_place(spec, stage, error.field)
            raise spec_error(f"{stage.name}: {error}", place) from error
    return resolved


def plan_keys(
    stages: Iterable[PlannedStage],
    leaves: Mapping[Source, InputKey],
    standing: Mapping[str, str] | None = None,
    parts: Mapping[str, KeyParts] | None = None,
) -> dict[str, str]:
    """Key of every stage by name. leaves: dataset and model sources -> (leaf key, output name).

    stages come in an order in which each follows its inputs, as `expand` gives them. standing: keys of stages
    that already have one and keep it, so that a plan that is changed half way re-keys only what changes.
    parts: `key_parts` of configurations by stage, where they are at hand.
    """
    keys: dict[str, str] = dict(standing or {})
    known = parts or {}

    def input_key(source: Source) -> InputKey:
        return (keys[source.name], source.output) if source.kind == "stage" else leaves[source]

    for stage in stages:
        if stage.name in keys:
            continue
        inputs = {
            role: [input_key(s) for s in sources] if len(sources) > 1 else input_key(sources[0])
            for role, sources in stage.inputs.items()
        }
        keys[stage.name] = stage_key(known.get(stage.name, stage.config), inputs, stage.seed)
    return keys


def plan_warnings(stages: Sequence[PlannedStage]) -> dict[str, list[str]]:
    """What a person should know before a plan runs, by stage: what no stage can see from its own inputs."""
    made = {Source.stage(stage.name, "model"): stage for stage in stages}
    rewarded = {source for stage in stages if stage.kind == "ppo" for source in stage.inputs["reward_model"]}
    rewarded_stages = [made[source] for source in rewarded if source in made]
    found: dict[str, list[str]] = {}
    for stage in stages:
        if isinstance(stage.config, ScoreStage) and stage.config.scheme != "in_sample":
            given = stage.inputs["reward_models"]
            scorers = [made[source] for source in given if source in made]
            if len(scorers) < len(given):
                found.setdefault(stage.name, []).append(UNKNOWN_FOLDS)
            if any(made[s].kind == "sft" for r in scorers for s in r.inputs["backbone"] if s in made):
                found.setdefault(stage.name, []).append(SEEN_BY_SFT)
        if stage.kind == "evaluate":
            judge = stage.inputs["judge"][0]
            twins = judge in made and any(_same_result(made[judge], other) for other in rewarded_stages)
            if judge in rewarded or twins:
                found[stage.name] = [TRAINED_AGAINST]
    return found


def _same_result(one: PlannedStage, other: PlannedStage) -> bool:
    return (
        one.kind == other.kind
        and (one.inputs, one.seed) == (other.inputs, other.seed)
        and result_config(one.config) == result_config(other.config)
    )


def _input_place(spec: JobSpec, error: WrongInput) -> Place:
    if spec.method is not None:
        if error.source.kind == "model":
            return ("model",)
        return ("eval_dataset",) if error.role == "eval" else ("dataset",)
    place, node = next((i, n) for i, n in enumerate(spec.stages or []) if n.name == error.stage)
    listed = isinstance(node.inputs[error.role], list)
    return ("stages", place, "inputs", error.role, *([error.place] if listed else []))


def _field_place(spec: JobSpec, stage: PlannedStage, field: str) -> Place:
    """Folds and the default judge have no field of their own: they are trained as reward_model says."""
    if spec.method is None:
        return (
            "stages",
            next(i for i, node in enumerate(spec.stages or []) if node.name == stage.name),
            field,
        )
    fields = type(spec.method).model_fields
    own = stage.name in fields and getattr(spec.method, stage.name) is not None
    return ("method", stage.name if own else "reward_model" if "reward_model" in fields else "judge", field)
