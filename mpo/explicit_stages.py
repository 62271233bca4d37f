"""From an explicit list of stages to a plan: names resolved, inputs checked, in order. Torch-free."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from mpo.config import DPOStage, RewardModelStage, ScoreStage
from mpo.presets import normalised_score
from mpo.roles import MAIN_OUTPUT, ROLES
from mpo.spec_places import Place, spec_error
from mpo.stage_graph import OUTPUTS, Lineage, PlannedStage, Source, lineages
from mpo.stage_nodes import ExplicitStage
from mpo.training_config import MOST_FOLDS

Leaf = Callable[[str], Source | None]
"""The dataset or model that a name stands for which is no stage's; None where it is nobody's."""


def named_leaf(name: str) -> Source:
    """A name as the service reads it: ds_… is a dataset, any other a model."""
    return Source.dataset(name) if name.startswith("ds_") else Source.model(name)


def expand_stages(nodes: Sequence[ExplicitStage], seed: int, leaf: Leaf) -> list[PlannedStage]:
    """The stages of a list, each after its inputs, else in the list's order.

    seed: of stages that name none. Raises InvalidSpec, whose facts `loc` and `field` say where: a name that
    occurs twice, an unknown stage, output or role, a role without input, a list where one is wanted, a cycle,
    reward models that do not fit the scoring scheme.
    """
    kinds: dict[str, str] = {}
    for place, node in enumerate(nodes):
        if node.name in kinds:
            raise spec_error("name is that of an earlier stage: give another", ("stages", place, "name"))
        kinds[node.name] = node.kind
    stages = []
    for place, node in enumerate(nodes):
        inputs = _inputs(node, ("stages", place, "inputs"), kinds, leaf)
        config = node.stage_config()
        stages.append(PlannedStage(node.name, config, inputs, seed if node.seed is None else node.seed))
    ordered = _in_order(stages)
    graph = _Graph(nodes, {stage.name: stage for stage in stages}, lineages(ordered))
    return [graph.settled(stage) for stage in ordered]


def _inputs(
    node: ExplicitStage, place: Place, kinds: Mapping[str, str], leaf: Leaf
) -> dict[str, tuple[Source, ...]]:
    roles = ROLES[node.kind]
    for role in node.inputs:
        if role not in roles:
            raise spec_error(f"{node.kind} has no such input: it takes {', '.join(roles)}", (*place, role))
    for role, taken in roles.items():
        if taken.required and role not in node.inputs:
            raise spec_error(f"{node.kind} needs the input {role}: {taken.words}", (*place, role))
    found: dict[str, tuple[Source, ...]] = {}
    for role, given in node.inputs.items():
        if isinstance(given, str):
            found[role] = (_source(given, (*place, role), kinds, leaf),)
        elif not roles[role].several:
            raise spec_error(f"{role} takes one input, not a list: {roles[role].words}", (*place, role))
        else:
            found[role] = tuple(_source(name, (*place, role, i), kinds, leaf) for i, name in enumerate(given))
    return found


def _source(name: str, place: Place, kinds: Mapping[str, str], leaf: Leaf) -> Source:
    stage, dot, output = name.partition(".")
    if stage in kinds:
        kind = kinds[stage]
        output = output if dot else MAIN_OUTPUT.get(kind, "")
        if output not in OUTPUTS[kind]:
            named = ", ".join(f"{stage}.{known}" for known in OUTPUTS[kind])
            raise spec_error(f"the outputs of the stage {stage} are {named}", place)
        return Source.stage(stage, output)
    found = leaf(name)
    if found is None:
        stages = ", ".join(kinds)
        raise spec_error(
            f"there is no such input: the stages are {stages}; else name a dataset or a model", place
        )
    return found


def _in_order(stages: Sequence[PlannedStage]) -> list[PlannedStage]:
    """Each after its inputs; raises InvalidSpec where they form a cycle."""
    ordered: list[PlannedStage] = []
    left = list(stages)
    while left:
        done = {stage.name for stage in ordered}
        ready = next((stage for stage in left if stage.stages_before() <= done), None)
        if ready is None:
            places = {stage.name: place for place, stage in enumerate(stages)}
            cycle = _cycle(left)
            place = min(places[name] for name in cycle)
            while places[cycle[0]] != place:
                cycle = [*cycle[1:], cycle[0]]
            raise spec_error(
                f"the stages form a cycle: {' -> '.join([*cycle, cycle[0]])}", ("stages", place, "inputs")
            )
        ordered.append(ready)
        left.remove(ready)
    return ordered


def _cycle(left: Sequence[PlannedStage]) -> list[str]:
    """Names along one cycle, each read by the next. left: stages of which each waits for another of them."""
    by_name = {stage.name: stage for stage in left}
    path = [left[0].name]
    while True:
        before = min(by_name[path[-1]].stages_before() & by_name.keys())
        if before in path:
            return path[path.index(before) :][::-1]
        path.append(before)


@dataclass(frozen=True)
class _Graph:
    """All stages, where each stands in the spec, and what lies behind it."""

    nodes: Sequence[ExplicitStage]
    stages: Mapping[str, PlannedStage]
    lineages: Mapping[str, Lineage]

    def settled(self, stage: PlannedStage) -> PlannedStage:
        """The stage with what its inputs decide written into its configuration."""
        config = stage.config
        if isinstance(config, ScoreStage):
            config = self._score(stage, config)
        elif isinstance(config, RewardModelStage):
            if config.on_weak != RewardModelStage.model_fields["on_weak"].default:
                raise spec_error(
                    "of explicit stages score asks this: give it as on_weak of the score",
                    (*self._place(stage), "on_weak"),
                )
            start = self._made_by(stage.inputs["backbone"][0])
            from_sft = start is not None and start.kind == "sft"
            config = config.model_copy(update={"backbone": "sft" if from_sft else "model"})
        elif isinstance(config, DPOStage):
            parts = self._made_by(stage.inputs["data"][0])
            if config.curriculum is not None and (parts is None or parts.kind != "split"):
                raise spec_error(
                    "a curriculum needs gaps: data of a split", (*self._place(stage), "curriculum")
                )
        return replace(stage, config=config)

    def _score(self, stage: PlannedStage, config: ScoreStage) -> ScoreStage:
        """folds, where it is left out, is the number of reward models; none may have seen what it scores."""
        models, place = stage.inputs["reward_models"], self._place(stage)
        role = (*place, "inputs", "reward_models")
        if config.scheme != "cross_fit" and len(models) > 1:
            raise spec_error(f"{config.scheme} takes one reward model", role)
        if config.scheme == "cross_fit":
            if len(models) < 2:
                raise spec_error(
                    "cross_fit takes a reward model a fold, at least 2; held_out and in_sample take one", role
                )
            if len(models) > MOST_FOLDS:
                raise spec_error(f"cross_fit takes at most {MOST_FOLDS} reward models", role)
            if "folds" in self.nodes[int(place[1])].model_fields_set and config.folds != len(models):
                raise spec_error(
                    f"folds is {config.folds}, reward_models are {len(models)}", (*place, "folds")
                )
            config = config.model_copy(update={"folds": len(models)})
        config = normalised_score(config, on_weak=config.on_weak or "pause")
        if config.scheme != "in_sample":
            for fold, model in enumerate(models, start=1):
                self._check_fold(config, fold, model, (*role, fold - 1))
        return config

    def _check_fold(self, score: ScoreStage, fold: int, model: Source, place: Place) -> None:
        trainer = self._made_by(model)
        trained = trainer.config if trainer is not None else None
        if isinstance(trained, RewardModelStage) and (trained.fold, trained.folds) != (fold, score.folds):
            raise spec_error(
                f"{score.scheme} scores fold {fold} of {score.folds} by a reward model trained with "
                f"fold {fold} and folds {score.folds}",
                place,
            )

    def _made_by(self, source: Source) -> PlannedStage | None:
        return self.stages[source.name] if source.kind == "stage" else None

    def _place(self, stage: PlannedStage) -> Place:
        return ("stages", next(i for i, node in enumerate(self.nodes) if node.name == stage.name))
