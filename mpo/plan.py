"""Expands a method to its stages with named inputs. Torch-free."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

from mpo.config import EvaluateStage, HoldOutStage, RewardModelStage, ScoreStage, Stage
from mpo.job_spec import JobSpec, MPOMethod
from mpo.keys import InputKey, stage_key
from mpo.lengths import resolve_lengths

OUTPUTS: Mapping[str, Mapping[str, str]] = {
    "hold_out": {"train": "train.parquet", "eval": "eval.parquet"},
    "sft": {"model": "model"},
    "reward_model": {"model": "model"},
    "score": {"scores": "scores.parquet"},
    "split": {
        "easy": "easy.parquet",
        "difficult": "difficult.parquet",
        "dropped": "dropped.parquet",
        "split": "split.parquet",
        "gaps": "gaps",
    },
    "dpo": {"model": "model"},
    "ppo": {"model": "model"},
    "evaluate": {"report": "report.json", "samples": "samples.jsonl"},
}
"""What each kind of stage leaves in its folder: output name -> file or folder."""

RANK = (
    "hold_out",
    "reward_model_fold",
    "score",
    "split",
    "sft",
    "reward_model",
    "dpo",
    "ppo",
    "judge",
    "evaluate",
)
"""Order in which a free slot takes a job's ready stages: the histogram comes early."""


@dataclass(frozen=True)
class Source:
    """Where an input comes from: an output of an earlier stage, a dataset (ds_…) or a model's name."""

    kind: Literal["stage", "dataset", "model"]
    name: str
    output: str

    @classmethod
    def stage(cls, name: str, output: str) -> "Source":
        """The output of a stage of the same job."""
        return cls("stage", name, output)

    @classmethod
    def dataset(cls, dataset_id: str) -> "Source":
        """A dataset's canonical rows."""
        return cls("dataset", dataset_id, "pairs")

    @classmethod
    def model(cls, name: str) -> "Source":
        """A base model, or the trained model job_…:stage."""
        return cls("model", name, "model")


@dataclass(frozen=True)
class PlannedStage:
    """A node of the graph: typed configuration, and its inputs by role, in order."""

    name: str
    config: Stage
    inputs: Mapping[str, tuple[Source, ...]]
    seed: int

    @property
    def kind(self) -> str:
        """The configuration's kind."""
        return self.config.kind

    @property
    def rank(self) -> int:
        """Place in `RANK`: lower is taken first by a free slot."""
        return RANK.index("reward_model_fold" if "_fold_" in self.name else self.name)

    def stages_before(self) -> set[str]:
        """Names of the stages whose outputs this one reads."""
        return {s.name for sources in self.inputs.values() for s in sources if s.kind == "stage"}


def expand(spec: JobSpec, *, model: str, dataset: str) -> list[PlannedStage]:
    """The stages of a job in an order in which each comes after its inputs. model, dataset: leaf names."""
    return _expand_mpo(spec, spec.method, Source.model(model), Source.dataset(dataset))


def _expand_mpo(spec: JobSpec, method: MPOMethod, model: Source, dataset: Source) -> list[PlannedStage]:
    train, held_out = Source.stage("hold_out", "train"), Source.stage("hold_out", "eval")
    has_eval = method.hold_out.fraction > 0 or spec.eval_dataset is not None
    sft = Source.stage("sft", "model") if method.sft else model
    backbone = sft if method.reward_model.backbone == "sft" else model
    evaluated_on = (held_out,) if has_eval else ()
    folds = [f"reward_model_fold_{k}" for k in range(1, method.score.folds + 1)]

    def planned(
        name: str, config: Stage, seed: int = spec.seed, /, **inputs: Iterable[Source]
    ) -> PlannedStage:
        return PlannedStage(name, config, {r: tuple(s) for r, s in inputs.items() if tuple(s)}, seed)

    def reward_model(
        name: str, config: RewardModelStage, start: Source, seed: int = spec.seed
    ) -> PlannedStage:
        return planned(name, config, seed, backbone=[start], data=[train], eval=evaluated_on)

    stages = [_hold_out(spec, method.hold_out, dataset)]
    if method.sft:
        stages.append(planned("sft", method.sft, policy=[model], data=[train]))
    for k, name in enumerate(folds, start=1):
        fold = method.reward_model.model_copy(update={"fold": k, "folds": len(folds)})
        stages.append(planned(name, fold, backbone=[backbone], data=[train]))
    stages.append(reward_model("reward_model", method.reward_model, backbone))
    score: ScoreStage = method.score.model_copy(update={"on_weak": method.reward_model.on_weak})
    scored_by = [Source.stage(name, "model") for name in folds]
    stages.append(planned("score", score, reward_models=scored_by, data=[train]))
    scores = Source.stage("score", "scores")
    stages.append(planned("split", method.split, scores=[scores], data=[train]))
    easy, difficult = Source.stage("split", "easy"), Source.stage("split", "difficult")
    dpo, final = Source.stage("dpo", "model"), Source.stage("reward_model", "model")
    stages.append(planned("dpo", method.dpo, policy=[sft], reference=[sft], data=[easy]))
    ppo_inputs = {"policy": [dpo], "reference": [dpo], "reward_model": [final], "prompts": [difficult]}
    # sft is read for the logged KL alone: how far both curriculum steps together have moved the policy.
    stages.append(planned("ppo", method.ppo, **ppo_inputs, sft=[sft]))
    if method.evaluate is not None:
        judge = method.judge or method.reward_model.model_copy(update={"backbone": "model"})
        stages.append(reward_model("judge", judge, model, spec.seed + 1))
        stages.append(
            _evaluate(method.evaluate, [sft, dpo, Source.stage("ppo", "model")], final, held_out, spec)
        )
    return stages


def _hold_out(spec: JobSpec, config: HoldOutStage, dataset: Source) -> PlannedStage:
    inputs: dict[str, tuple[Source, ...]] = {"data": (dataset,)}
    if spec.eval_dataset is not None:
        inputs["eval"] = (Source.dataset(spec.eval_dataset),)
    return PlannedStage("hold_out", config, inputs, spec.seed)


def _evaluate(
    config: EvaluateStage, models: list[Source], reward_model: Source, held_out: Source, spec: JobSpec
) -> PlannedStage:
    judge = Source.stage("judge", "model")
    inputs = {
        "models": tuple(models),
        "reward_model": (reward_model,),
        "judge": (judge,),
        "data": (held_out,),
    }
    return PlannedStage("evaluate", config, inputs, spec.seed)


def resolve(stages: Iterable[PlannedStage], context_tokens: int) -> list[PlannedStage]:
    """The same plan with every open length set from the model's context, in tokens; raises ValueError."""
    return [replace(stage, config=resolve_lengths(stage.config, context_tokens)) for stage in stages]


def plan_keys(
    stages: Iterable[PlannedStage],
    leaves: Mapping[Source, InputKey],
    standing: Mapping[str, str] | None = None,
) -> dict[str, str]:
    """Key of every stage by name. leaves: dataset and model sources -> (leaf key, output name).

    stages come in an order in which each follows its inputs, as `expand` gives them. standing: keys of stages
    that already have one and keep it, so that a plan that is changed half way re-keys only what changes.
    """
    keys: dict[str, str] = dict(standing or {})

    def input_key(source: Source) -> InputKey:
        return (keys[source.name], source.output) if source.kind == "stage" else leaves[source]

    for stage in stages:
        if stage.name in keys:
            continue
        inputs = {
            role: [input_key(s) for s in sources] if len(sources) > 1 else input_key(sources[0])
            for role, sources in stage.inputs.items()
        }
        keys[stage.name] = stage_key(stage.config, inputs, stage.seed)
    return keys


def dependents(stages: Iterable[PlannedStage], name: str) -> set[str]:
    """Names of all stages that depend on a stage, directly or not."""
    found: set[str] = set()
    for stage in stages:
        if stage.stages_before() & (found | {name}):
            found.add(stage.name)
    return found
