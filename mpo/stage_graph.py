"""A job as a graph of stages: where inputs come from, and what follows from the edges. Torch-free."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mpo.config import RewardModelStage, Stage

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

STARTS_FROM = ("policy", "backbone")
"""Roles of the model that a stage trains further."""


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

    def __str__(self) -> str:
        return f"{self.name}.{self.output}" if self.kind == "stage" else self.name


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

    def sources(self) -> list[Source]:
        """All inputs, whatever their role."""
        return [source for sources in self.inputs.values() for source in sources]

    def stages_before(self) -> set[str]:
        """Names of the stages whose outputs this one reads."""
        return {source.name for source in self.sources() if source.kind == "stage"}


@dataclass(frozen=True)
class Lineage:
    """What lies behind a stage. datasets: whose rows it reads; models: those, made by no stage of the job,
    that it reads or descends from; seen: datasets that its models were trained on; start: the model, made by
    no stage, that what it trains began as."""

    datasets: frozenset[Source]
    models: frozenset[Source]
    seen: frozenset[Source]
    start: Source | None


def dependents(stages: Iterable[PlannedStage], name: str) -> set[str]:
    """Names of all stages that depend on a stage, directly or not."""
    found: set[str] = set()
    for stage in stages:
        if stage.stages_before() & (found | {name}):
            found.add(stage.name)
    return found


def lineages(stages: Iterable[PlannedStage]) -> dict[str, Lineage]:
    """The lineage of every stage by name. stages: each after its inputs."""
    found: dict[str, Lineage] = {}
    for stage in stages:
        found[stage.name] = _lineage(stage, found)
    return found


def _lineage(stage: PlannedStage, before: Mapping[str, Lineage]) -> Lineage:
    datasets, models, seen = set[Source](), set[Source](), set[Source]()
    start: Source | None = None
    for role, sources in stage.inputs.items():
        for source in sources:
            behind = before[source.name] if source.kind == "stage" else None
            if source.output == "model":
                models |= behind.models if behind else {source}
                trained_on = behind.seen if behind else frozenset()
            else:
                trained_on = behind.datasets if behind else frozenset({source})
                datasets |= trained_on
            if role != "eval":
                seen |= trained_on
            if role in STARTS_FROM:
                start = behind.start if behind else source
    return Lineage(frozenset(datasets), frozenset(models), frozenset(seen), start)


def ranks(stages: Sequence[PlannedStage]) -> dict[str, int]:
    """Place of each stage in `RANK`, by name: lower is taken first by a free slot. Names are free, so that a
    fold is told by its configuration, and a judge by who reads it."""
    readers: dict[str, set[str]] = {stage.name: set() for stage in stages}
    for stage in stages:
        for role, sources in stage.inputs.items():
            for source in sources:
                if source.kind == "stage":
                    readers[source.name].add(f"{stage.kind}.{role}")
    return {stage.name: RANK.index(_rank_word(stage, readers[stage.name])) for stage in stages}


def _rank_word(stage: PlannedStage, read_as: set[str]) -> str:
    if isinstance(stage.config, RewardModelStage):
        if stage.config.fold is not None:
            return "reward_model_fold"
        if read_as == {"evaluate.judge"}:
            return "judge"
    return stage.kind
