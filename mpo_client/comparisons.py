"""Comparisons: the same prompts to several models, side by side, scored."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Flow, Plan, Reply, given, path, send
from mpo_client.datasets import Dataset
from mpo_client.downloads import download
from mpo_client.nouns import Awaiting, Blocking, answers, iterates
from mpo_client.paging import listed
from mpo_client.waiting import wait_until

FINISHED = frozenset({"succeeded", "failed", "cancelled"})
Prompt = str | list[dict[str, JsonValue]]


class Response(Reply):
    """model: None where the comparison is blind and nobody has voted on the row. side: as votes name it."""

    model: str | None = None
    side: Literal["A", "B"] | None = None
    sample: int = 0
    text: str
    finish_reason: str | None = None
    tokens: int | None = None
    score: float | None = None


class Vote(Reply):
    """What an annotator says of a row."""

    annotator: str
    preferred: Literal["A", "B", "tie", "both_bad"]


class Row(Reply):
    index: int
    prompt: JsonValue
    responses: list[Response]
    votes: list[Vote] = []


class WinRate(Reply):
    """How often `model_a` scored higher than `model_b`, with Wilson's 95 % interval; ties count half.

    in_training: the scorer trained one of them. length_controlled: the rate if both were equally long.
    p_value: of a rate of one half, corrected by Holm over all pairs. Of a judge: ties on which it
    contradicted itself, and prompts outside of n, as its answer could not be read or did not come.
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
    p_value: float | None = None
    significant: bool | None = None
    disagreed: int | None = None
    unparsed: int | None = None
    failed: int | None = None


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
    blind: bool = False
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
        judge: Mapping[str, JsonValue] | None = None,
        blind: bool = False,
    ) -> Plan[Comparison]:
        """Queues it: on prompts, or on the first `limit` rows of a dataset.

        `reward_model` scores the responses, or `judge` compares them, `{"base_url", "model", "rubric"}`;
        without either nothing is scored. n: responses a prompt and model. blind: sides in place of two models
        until a row is voted on.
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
            "scorer": {"judge": {**judge}}
            if judge
            else {"reward_model": reward_model}
            if reward_model
            else None,
        }
        if blind:
            body["blind"] = True
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
    def vote(
        self,
        comparison_id: str,
        *,
        row: int,
        preferred: Literal["A", "B", "tie", "both_bad"],
        annotator: str = "anonymous",
    ) -> Plan[Row]:
        """Says which of a row's two responses is better; replaces an earlier vote of the same annotator."""
        body: dict[str, JsonValue] = {"row": row, "preferred": preferred, "annotator": annotator}
        return send(Call("POST", path("comparisons", comparison_id, "votes"), Row, body=body))

    @answers
    def to_dataset(self, comparison_id: str) -> Plan[Dataset]:
        """Makes a preference dataset of the votes so far, each with its annotator."""
        return send(Call("POST", path("comparisons", comparison_id, "dataset"), Dataset, creates=True))

    @answers
    def save_csv(self, comparison_id: str, to: Path) -> Plan[None]:
        """All rows that there are as a CSV file, a line a response."""
        return download(path("comparisons", comparison_id, "rows"), to, accept="text/csv")

    @answers
    def save_json_lines(self, comparison_id: str, to: Path) -> Plan[None]:
        """All rows that there are as JSON Lines, a line a row."""
        return download(path("comparisons", comparison_id, "rows"), to, accept="application/x-ndjson")

    @answers
    def save_html(self, comparison_id: str, to: Path) -> Plan[None]:
        """Win rates and all rows that there are as a page to read and to send on."""
        return download(path("comparisons", comparison_id, "rows"), to, accept="text/html")

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
