"""Comparisons: the same prompts to several models, side by side, scored."""

from collections.abc import Sequence
from typing import Literal

from pydantic import BaseModel, JsonValue

from mpo_client.transport import Call, Transport
from mpo_client.waiting import wait_until

FINISHED = frozenset({"succeeded", "failed", "cancelled"})


class Response(BaseModel):
    model: str | None = None
    text: str
    finish_reason: str | None = None
    tokens: int | None = None
    score: float | None = None


class Row(BaseModel):
    index: int
    prompt: JsonValue
    responses: list[Response]


class WinRate(BaseModel):
    """How often `model_a` scored higher than `model_b`, with Wilson's 95 % interval; ties count half."""

    model_a: str
    model_b: str
    wins: float
    losses: float
    ties: float
    win_rate: float
    ci95: tuple[float, float]
    n: int


class ComparisonError(BaseModel):
    code: str = ""
    message: str = ""


class Comparison(BaseModel):
    id: str
    status: Literal["queued", "running", "paused", "succeeded", "failed", "cancelled"]
    models: list[str]
    rows: list[Row] = []
    row_count: int | None = None
    win_rates: list[WinRate] | None = None
    error: ComparisonError | None = None


class Comparisons:
    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def create(
        self,
        *,
        models: Sequence[str],
        prompts: Sequence[str],
        max_tokens: int | None = None,
        temperature: float | None = None,
        seed: int | None = None,
        reward_model: str | None = None,
    ) -> Comparison:
        """Queues it. `reward_model` scores the responses; without one nothing is scored."""
        given = {"max_tokens": max_tokens, "temperature": temperature, "seed": seed}
        sampling: dict[str, JsonValue] = {name: value for name, value in given.items() if value is not None}
        body: dict[str, JsonValue] = {
            "models": [*models],
            "prompts": [*prompts],
            "sampling": sampling,
            "scorer": {"reward_model": reward_model} if reward_model else None,
        }
        return self._transport.send(Call("POST", "/v1/comparisons", Comparison, body=body, creates=True))

    def get(self, comparison_id: str, *, wait_seconds: float = 0.0) -> Comparison:
        """With `wait_seconds` (at most 60) the answer comes once the comparison changes."""
        return self._transport.send(_get(comparison_id, wait_seconds))

    def wait(self, comparison_id: str, *, deadline_seconds: float) -> Comparison:
        """Until it is finished. Raises DeadlinePassed."""
        return wait_until(
            self._transport,
            lambda held: _get(comparison_id, held),
            done=lambda comparison: comparison.status in FINISHED,
            what=f"comparison {comparison_id}",
            deadline_seconds=deadline_seconds,
        )


def _get(comparison_id: str, wait_seconds: float) -> Call[Comparison]:
    query = {"wait": int(wait_seconds) or None}
    return Call("GET", f"/v1/comparisons/{comparison_id}", Comparison, query=query, held_seconds=wait_seconds)
