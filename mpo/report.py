"""The report of a whole job, put together from what its stages left. Torch-free."""

from collections.abc import Mapping

from mpo.job_spec import JobSpec

METHOD = "Mixed Preference Optimization (arXiv 2403.19443)"
FOLD = "reward_model_fold_"

Summary = Mapping[str, object]
"""A stage's summary.json."""


def build_report(
    summaries: Mapping[str, Summary], spec: JobSpec, dataset: Summary | None = None
) -> dict[str, object]:
    """The report as JSON values: data, reward_model, gaps, split, stages and evaluation.

    summaries: by stage name, of the stages that there are; a part whose stage is missing is None. dataset:
    what validation found in the pairs' file.
    """
    return {
        "object": "report",
        "name": spec.name,
        "method": METHOD,
        "spec": spec.model_dump(mode="json"),
        "data": {"dataset": dataset, "hold_out": summaries.get("hold_out")},
        "reward_model": {
            "final": summaries.get("reward_model"),
            "folds": {name: summary for name, summary in summaries.items() if name.startswith(FOLD)},
            "judge": summaries.get("judge"),
        },
        "gaps": summaries.get("score"),
        "split": summaries.get("split"),
        "stages": {name: summaries[name] for name in ("sft", "dpo", "ppo") if name in summaries},
        "evaluation": summaries.get("evaluate"),
    }
