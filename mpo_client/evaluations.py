"""Evaluations: models measured on held-out prompts by a judge, outside of any job."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Flow, Plan, Reply, given, path, send
from mpo_client.comparisons import Row, WinRate
from mpo_client.downloads import download
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.waiting import wait_until

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
Independence = Literal["other_seed", "other_data", "llm", "gold"]


class Mean(Reply):
    """A mean over prompts, with the bootstrap's 95 % interval."""

    mean: float
    ci95: tuple[float, float]


class Diversity(Reply):
    """Distinct words, and pairs of words in a row, a word written.

    self_bleu: BLEU of a response against the model's others, 0 to 1: the lower, the more varied.
    """

    distinct_1: float | None = None
    distinct_2: float | None = None
    self_bleu: float | None = None


class EvaluatedModel(Reply):
    """reward: the judge's. kl: in nats a response, by the base's name."""

    model: str
    reward: Mean
    training_reward: Mean | None = None
    response_tokens: Mean | None = None
    eos_rate: float | None = None
    diversity: Diversity = Diversity()
    kl: dict[str, Mean] = {}


class EvaluationJudge(Reply):
    """The judge on the dataset's pairs; `calibration` holds the rest of what is known of it."""

    name: str
    accuracy: float
    accuracy_ci95: tuple[float, float]
    pairs: int
    calibration: dict[str, JsonValue] = {}


class Seen(Reply):
    """How many prompts, and the index of the first ten."""

    prompts: int
    first: list[int] = []


class SeenByModel(Reply):
    """Prompts in what a model was trained on; None where that is not known."""

    model: str
    data: list[str] | None = None
    equal: Seen | None = None
    shared_13_grams: Seen | None = None


class Contamination(Reply):
    models: list[SeenByModel] = []


class EvaluationReport(Reply):
    """Models in the order of the request. contamination: None where nobody knows any model's training."""

    prompts: int
    samples: int
    judge: EvaluationJudge
    judge_independence: str
    note: str | None = None
    models: list[EvaluatedModel]
    win_rates: list[WinRate]
    by_gap: list[dict[str, JsonValue]] | None = None
    contamination: Contamination | None = None


class EvaluationError(Reply):
    code: str = ""
    message: str = ""


class EvaluationProgress(Reply):
    """Steps are phases: a scorer's scores, a model's answers, a KL."""

    step: int = 0
    total_steps: int = 0
    fraction: float = 0.0
    eta_seconds: float | None = None


class Evaluation(Reply):
    """`report` is there once it has succeeded."""

    id: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    models: list[str]
    judge: str
    dataset: str
    warnings: list[str] = []
    progress: EvaluationProgress | None = None
    report: EvaluationReport | None = None
    error: EvaluationError | None = None
    run_id: str | None = None
    created_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None


class EvaluationMethods:
    """What both clients can do with evaluations."""

    @answers
    def create(
        self,
        *,
        models: Sequence[str],
        judge: str,
        dataset: str,
        reward_model: str | None = None,
        sft: str | None = None,
        dpo: str | None = None,
        prompts: int | None = None,
        samples: int | None = None,
        max_new_tokens: int | None = None,
        max_prompt_tokens: int | None = None,
        max_response_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        judge_independence: Independence | None = None,
    ) -> Plan[Evaluation]:
        """Queues it: on at most `prompts` prompts of a dataset of pairs, `samples` responses a model to each.

        judge: a reward model that trained none of the models. reward_model: the one that they were trained
        against, for numbers by its gaps. KL is measured to `sft`, or else to the first model, and to `dpo`.
        """
        asked: dict[str, JsonValue | None] = {
            "reward_model": reward_model,
            "sft": sft,
            "dpo": dpo,
            "prompts": prompts,
            "samples": samples,
            "max_new_tokens": max_new_tokens,
            "max_prompt_tokens": max_prompt_tokens,
            "max_response_tokens": max_response_tokens,
            "temperature": temperature,
            "seed": seed,
            "judge_independence": judge_independence,
        }
        body: dict[str, JsonValue] = {"models": [*models], "judge": judge, "dataset": dataset, **given(asked)}
        return send(Call("POST", path("evaluations"), Evaluation, body=body, creates=True))

    @answers
    def get(self, evaluation_id: str, *, wait_seconds: float = 0.0) -> Plan[Evaluation]:
        """With `wait_seconds` (at most 60) the answer comes once the evaluation changes."""
        return send(_get(evaluation_id, wait_seconds))

    @answers
    def wait(
        self,
        evaluation_id: str,
        *,
        deadline_seconds: float,
        on_change: Callable[[Evaluation], None] | None = None,
    ) -> Plan[Evaluation]:
        """Until it is finished. Raises DeadlinePassed."""
        return wait_until(
            lambda held: _get(evaluation_id, held),
            done=lambda evaluation: evaluation.status in FINISHED,
            what=f"evaluation {evaluation_id}",
            deadline_seconds=deadline_seconds,
            on_change=on_change,
        )

    @answers
    def cancel(self, evaluation_id: str) -> Plan[Evaluation]:
        """It leaves no report."""
        return send(Call("POST", path("evaluations", evaluation_id, "cancel"), Evaluation))

    @iterates
    def samples(self, evaluation_id: str, *, limit: int | None = None) -> Flow[Row]:
        """What every model answered, a prompt a row, in order. Raises Conflict before it has succeeded."""
        return listed(path("evaluations", evaluation_id, "samples"), Row, limit=limit)

    @answers
    def save_samples(self, evaluation_id: str, to: Path) -> Plan[None]:
        """The same as JSON Lines, a line a prompt."""
        return download(path("evaluations", evaluation_id, "samples"), to, accept="application/x-ndjson")

    # Last in its class: from here on the name hides Python's own.
    @iterates
    def list(self, *, limit: int | None = None) -> Flow[Evaluation]:
        """Newest first."""
        return listed(path("evaluations"), Evaluation, limit=limit)


class Evaluations(Blocking, EvaluationMethods):
    """Of a Client."""


class AsyncEvaluations(Awaiting, EvaluationMethods):
    """Of an AsyncClient."""


def _get(evaluation_id: str, wait_seconds: float) -> Call[Evaluation]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", path("evaluations", evaluation_id), Evaluation, query=query, held_seconds=wait_seconds)
