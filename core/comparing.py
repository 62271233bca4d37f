"""A comparison as it is asked for and carried out; the API writes it, a worker reads it. Torch-free."""

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert as upsert

from core.database import Transaction
from core.sampling import Message, Text
from core.tables import Comparison, ComparisonRow

MAX_SEED = 2**63 - 1
MAX_PROMPTS = 10_000


class _Asked(BaseModel):
    """Frozen; unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("should hold no NUL character")
    return text


def different(names: list[str]) -> list[str]:
    """Refuse a model that is named twice."""
    if len(set(names)) < len(names):
        raise ValueError("should name each model once")
    return names


ModelName = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_without_nul)]
StorableText = Annotated[Text, AfterValidator(_without_nul)]


class Turn(Message):
    """A turn of a conversation that the database can keep."""

    role: StorableText
    content: StorableText


ComparedPrompt = StorableText | Annotated[list[Turn], Field(min_length=1)]


class ComparisonSampling(_Asked):
    """How each model's responses are drawn. n: responses a prompt; max_tokens: the longest one."""

    temperature: float = Field(
        1.0, ge=0, le=2, allow_inf_nan=False, description="0 takes the likeliest token."
    )
    top_p: float = Field(1.0, gt=0, le=1, allow_inf_nan=False)
    max_tokens: int = Field(256, ge=1, le=100_000, description="Tokens a response may have.")
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="Drawn, and then shown, where it is null.")
    n: int = Field(1, ge=1, le=16, description="Responses a prompt and model.")


class RewardModelScorer(_Asked):
    """Responses are scored by a reward model of this service."""

    reward_model: ModelName


RUBRIC = (
    "Two assistants answered the same request. Judge which answer is more helpful, correct and polite. "
    "Neither length nor order matters."
)


class JudgeScorer(_Asked):
    """Responses are compared two by two by an LLM at any OpenAI-compatible address.

    Its key is none of the request's: whoever runs the service sets it by host (MPO_JUDGE_KEYS).
    """

    base_url: Annotated[str, Field(min_length=1, max_length=2_000), AfterValidator(_without_nul)] = Field(
        description="Up to /v1; /chat/completions follows."
    )
    model: ModelName
    rubric: Annotated[str, Field(min_length=1, max_length=8_000), AfterValidator(_without_nul)] = Field(
        RUBRIC, description="What the judge is told to look at."
    )
    max_tokens: int = Field(16, ge=1, le=4_096, description="Tokens a verdict may have, with its reasons.")
    timeout_seconds: float = Field(30.0, gt=0, le=300, description="Longest wait for one verdict.")


class ComparisonRequest(_Asked):
    """What a run of kind `compare` does; `Comparison.request` and the run's configuration hold it.

    prompts, or else the first `limit` rows of `dataset`. trained_by_scorer: the models that were trained to
    please the scorer, so that a win by its scores is no surprise.
    """

    models: Annotated[list[ModelName], Field(min_length=2, max_length=8), AfterValidator(different)]
    prompts: list[ComparedPrompt] | None = None
    dataset: str | None = None
    limit: int | None = None
    sampling: ComparisonSampling = ComparisonSampling()
    scorer: RewardModelScorer | JudgeScorer | None = None
    trained_by_scorer: list[str] = []
    blind: bool = False


def record_rows(tx: Transaction, comparison_id: str, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as they come, {"index", "prompt", "responses"}; those of an earlier attempt are replaced."""
    comparison = select(Comparison).where(Comparison.id == comparison_id)
    # Held first: the count below is then true whoever else writes.
    held = tx.session.scalar(comparison.with_for_update())
    if held is None or not rows:
        return
    values = [{"comparison_id": comparison_id, **_storable(row)} for row in rows]
    statement = upsert(ComparisonRow).values(values)
    tx.session.execute(
        statement.on_conflict_do_update(
            index_elements=[ComparisonRow.comparison_id, ComparisonRow.index],
            set_={"prompt": statement.excluded.prompt, "responses": statement.excluded.responses},
        )
    )
    counted = select(func.count()).where(ComparisonRow.comparison_id == comparison_id)
    count = tx.session.scalar(counted) or 0
    total = max(int((held.progress or {}).get("total_steps") or 0), count)
    tx.session.execute(
        update(Comparison)
        .where(Comparison.id == comparison_id)
        .values(row_count=count, progress=progress_of(count, total))
    )


def progress_of(step: int, total_steps: int) -> dict[str, Any]:
    """A comparison's `progress`; its steps are rows."""
    fraction = step / total_steps if total_steps else 0.0
    return {"step": step, "total_steps": total_steps, "fraction": fraction, "eta_seconds": None}


def _storable(value: Any) -> Any:
    """A model may well write NUL, which Postgres keeps in no text."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd")
    if isinstance(value, dict):
        return {key: _storable(item) for key, item in value.items()}
    return [_storable(item) for item in value] if isinstance(value, list) else value
