"""The report of a whole job, put together from what its stages left. Torch-free."""

from collections.abc import Mapping

from mpo.job_spec import JobSpec

METHODS = {
    "mpo": "Mixed Preference Optimization (arXiv 2403.19443)",
    "sft": "Supervised fine-tuning",
    "reward_model": "Bradley-Terry reward model",
    "dpo": "Direct Preference Optimization (arXiv 2305.18290)",
    "ppo": "Proximal Policy Optimization (arXiv 1707.06347)",
}
EXPLICIT = "Explicit stages"
FOLD = "reward_model_fold_"

Summary = Mapping[str, object]
"""A stage's summary.json."""


def build_report(
    summaries: Mapping[str, Summary],
    spec: JobSpec,
    dataset: Summary | None = None,
    eval_dataset: Summary | None = None,
) -> dict[str, object]:
    """The report as JSON values: data, reward_model, gaps, split, stages and evaluation.

    summaries: by stage name, of the stages that there are; a part whose stage is missing is None. Of explicit
    stages the first of its kind stands for a part, and `stages` holds all. dataset, eval_dataset: what
    validation found in the files of pairs.
    """
    named = {name: name for name in summaries} if spec.method else _first_of_kind(spec)
    trained = ("sft", "dpo", "ppo") if spec.method else tuple(summaries)

    def part(kind: str) -> Summary | None:
        return summaries.get(named.get(kind, ""))

    return {
        "object": "report",
        "name": spec.name,
        "method": METHODS[spec.method.type] if spec.method else EXPLICIT,
        "spec": spec.model_dump(mode="json"),
        "data": {"dataset": dataset, "eval_dataset": eval_dataset, "hold_out": part("hold_out")},
        "reward_model": {
            "final": part("reward_model"),
            "folds": {name: summaries[name] for name in _folds(spec, summaries)},
            "judge": part("judge"),
        },
        "gaps": part("score"),
        "split": part("split"),
        "stages": {name: summaries[name] for name in trained if name in summaries},
        "evaluation": part("evaluate"),
    }


def _first_of_kind(spec: JobSpec) -> dict[str, str]:
    """Stage names by what they are in the report: the judge is whom the evaluation reads as such."""
    found: dict[str, str] = {}
    nodes = spec.stages or []
    judges = [node.inputs["judge"] for node in nodes if node.kind == "evaluate" and "judge" in node.inputs]
    folds = _folds(spec, {node.name: {} for node in nodes})
    for node in nodes:
        word = "judge" if node.name in judges or f"{node.name}.model" in judges else node.kind
        if node.name not in folds:
            found.setdefault(word, node.name)
    if _trained_against(spec, found.get("judge", "")):
        found.setdefault("reward_model", found["judge"])
    return found


def _trained_against(spec: JobSpec, judge: str) -> bool:
    """Whether the judge gives rewards in another role too."""
    sources = [
        source
        for node in spec.stages or []
        for role, given in node.inputs.items()
        if role in {"reward_model", "reward_models"}
        for source in ([given] if isinstance(given, str) else given)
    ]
    return judge in {source.removesuffix(".model") for source in sources}


def _folds(spec: JobSpec, summaries: Mapping[str, Summary]) -> list[str]:
    if spec.method is not None:
        return [name for name in summaries if name.startswith(FOLD)]
    nodes = [node for node in spec.stages or [] if node.kind == "reward_model" and node.fold is not None]
    return [node.name for node in nodes if node.name in summaries]
