"""Comparisons: the same prompts to several models, side by side, scored."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Flow, Plan, Reply, given, path, send
from mpo_client.downloads import download
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.waiting import wait_until

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
Prompt = str | list[dict[str, JsonValue]]


class Response(Reply):
    model: str | None = None
    sample: int = 0
    text: str
    finish_reason: str | None = None
    tokens: int | None = None
    score: float | None = None


class Row(Reply):
    index: int
    prompt: JsonValue
    responses: list[Response]


class WinRate(Reply):
    """How often `model_a` scored higher than `model_b`, with Wilson's 95 % interval; ties count half.

    in_training: the scorer trained one of them.
    """

    model_a: str
    model_b: str
    wins: float
    losses: float
    ties: float
    win_rate: float | None
    ci95: tuple[float, float]
    length_controlled: float | None = None
    n: int
    in_training: bool = False


class ComparisonError(Reply):
    code: str = ""
    message: str = ""


class ComparisonProgress(Reply):
    """Steps are rows."""

    step: int = 0
    total_steps: int = 0
    fraction: float = 0.0


class Comparison(Reply):
    """`rows` holds the first 20."""

    id: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    models: list[str]
    dataset: str | None = None
    rows: list[Row] = []
    row_count: int | None = None
    win_rates: list[WinRate] | None = None
    progress: ComparisonProgress | None = None
    error: ComparisonError | None = None
    created_at: int | None = None
    finished_at: int | None = None


class ComparisonMethods:
    """What both clients can do with comparisons."""

    @answers
    def create(
        self,
        *,
        models: Sequence[str],
        prompts: Sequence[Prompt] | None = None,
        dataset: str | None = None,
        limit: int | None = None,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        seed: int | None = None,
        n: int | None = None,
        reward_model: str | None = None,
    ) -> Plan[Comparison]:
        """Queues it: on prompts, or on the first `limit` rows of a dataset.

        `reward_model` scores the responses; without one nothing is scored. n: responses a prompt and model.
        """
        drawn = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed, "n": n}
        asked: JsonValue = None if prompts is None else [_content(prompt) for prompt in prompts]
        source: dict[str, JsonValue | None] = {
            "prompts": asked,
            "dataset": dataset,
            "limit": limit,
        }
        sampling: dict[str, JsonValue] = {**given(drawn)}
        body: dict[str, JsonValue] = {
            "models": [*models],
            **given(source),
            "sampling": sampling,
            "scorer": {"reward_model": reward_model} if reward_model else None,
        }
        return send(Call("POST", path("comparisons"), Comparison, body=body, creates=True))

    @answers
    def get(self, comparison_id: str, *, wait_seconds: float = 0.0) -> Plan[Comparison]:
        """With `wait_seconds` (at most 60) the answer comes once the comparison changes."""
        return send(_get(comparison_id, wait_seconds))

    @answers
    def wait(
        self,
        comparison_id: str,
        *,
        deadline_seconds: float,
        on_change: Callable[[Comparison], None] | None = None,
    ) -> Plan[Comparison]:
        """Until it is finished. Raises DeadlinePassed."""
        return wait_until(
            lambda held: _get(comparison_id, held),
            done=lambda comparison: comparison.status in FINISHED,
            what=f"comparison {comparison_id}",
            deadline_seconds=deadline_seconds,
            on_change=on_change,
        )

    @answers
    def cancel(self, comparison_id: str) -> Plan[Comparison]:
        """The rows that it has stay."""
        return send(Call("POST", path("comparisons", comparison_id, "cancel"), Comparison))

    @iterates
    def rows(self, comparison_id: str, *, limit: int | None = None) -> Flow[Row]:
        """All rows that there are, in order."""
        return listed(path("comparisons", comparison_id, "rows"), Row, limit=limit)

    @answers
    def save_csv(self, comparison_id: str, to: Path) -> Plan[None]:
        """All rows that there are as a CSV file, a line a response."""
        return download(path("comparisons", comparison_id, "rows"), to, accept="text/csv")

    # Last in its class: from here on the name hides Python's own.
    @iterates
    def list(self, *, limit: int | None = None) -> Flow[Comparison]:
        """Newest first."""
        return listed(path("comparisons"), Comparison, limit=limit)


class Comparisons(Blocking, ComparisonMethods):
    """Of a Client."""


class AsyncComparisons(Awaiting, ComparisonMethods):
    """Of an AsyncClient."""


def _content(prompt: Prompt) -> JsonValue:
    return prompt if isinstance(prompt, str) else [dict(turn) for turn in prompt]


def _get(comparison_id: str, wait_seconds: float) -> Call[Comparison]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", path("comparisons", comparison_id), Comparison, query=query, held_seconds=wait_seconds)
