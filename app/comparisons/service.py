"""Use cases of comparisons."""

import secrets
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.comparisons.rows import row_views
from app.comparisons.schemas import (
    SHOWN_ROWS,
    ComparisonCreate,
    ComparisonProgress,
    ComparisonRowView,
    ComparisonView,
)
from app.datasets.service import DatasetNotReady
from app.models.lineage import reward_models_behind
from app.ownership import find_owned
from app.pagination import Page, PageQuery, page_of
from app.single_runs import cancel_with_run
from core import queue
from core.comparing import MAX_SEED, ComparisonRequest, JudgeScorer, progress_of
from core.database import Transaction
from core.errors import Conflict, NotFound, Unprocessable
from core.ids import new_id
from core.outside import AddressRefused, check_address
from core.settings import settings
from core.states import DatasetState, JobState
from core.tables import Artifact, BaseModelRow, Comparison, ComparisonRow, Dataset, Job
from core.work_items import NewRun
from core.work_lookup import locate_base, locate_model, rows_input

DEFAULT_LIMIT = 100


class ComparisonFinished(Conflict):
    """The comparison has ended already."""

    code = "comparison_finished"


def create_comparison(tx: Transaction, owner: str, body: ComparisonCreate) -> str:
    """Queue a comparison; returns its id. Raises NotFound, Unprocessable, DatasetNotReady."""
    inputs: dict[str, list[dict[str, Any]]] = {
        "models": [
            _located(tx, owner, name, "policy", ("body", "models", place))
            for place, name in enumerate(body.models)
        ]
    }
    if body.scorer is not None and body.scorer.reward_model is not None:
        loc = ("body", "scorer", "reward_model")
        inputs["reward_model"] = [_located(tx, owner, body.scorer.reward_model, "reward_model", loc)]
    if body.scorer is not None and body.scorer.judge is not None:
        _check_judge(body.scorer.judge)
    if body.dataset is not None:
        dataset = _ready_dataset(tx.session, owner, body.dataset)
        inputs["prompts"] = [rows_input(dataset)]
        total = min(body.limit or DEFAULT_LIMIT, dataset.rows or 0)
    else:
        total = len(body.prompts or [])
    request = _request(tx, owner, body, inputs)
    comparison = Comparison(
        id=new_id("comparison"),
        owner=owner,
        models=list(body.models),
        request=request.model_dump(mode="json"),
        progress=progress_of(0, total),
    )
    new_run = NewRun(
        kind="compare",
        slot="cpu",
        owner=owner,
        subject_id=comparison.id,
        config=comparison.request,
        inputs=inputs,
        seed=request.sampling.seed or 0,
    )
    comparison.run_id = queue.enqueue(tx, new_run)
    tx.session.add(comparison)
    tx.session.flush()
    return comparison.id


def read_comparison(session: Session, owner: str, comparison_id: str) -> ComparisonView:
    """A comparison as it is now."""
    return comparison_view(session, find_owned(session, Comparison, owner, comparison_id))


def comparison_view(session: Session, comparison: Comparison) -> ComparisonView:
    """A comparison with its first rows."""
    request = ComparisonRequest.model_validate(comparison.request)
    rows = rows_after(session, comparison.id, -1, SHOWN_ROWS)
    return ComparisonView(
        id=comparison.id,
        status=JobState(comparison.status),
        models=comparison.models,
        dataset=request.dataset,
        sampling=request.sampling,
        scorer=request.scorer,
        blind=request.blind,
        rows=row_views(session, comparison, rows),
        row_count=comparison.row_count,
        win_rates=comparison.win_rates,
        progress=ComparisonProgress.model_validate(comparison.progress or progress_of(0, 0)),
        error=comparison.error,
        run_id=comparison.run_id,
        created_at=comparison.created_at,
        finished_at=comparison.finished_at,
    )


def rows_after(session: Session, comparison_id: str, after: int, limit: int) -> list[ComparisonRow]:
    """Rows in order, from the one after `after`."""
    statement = (
        select(ComparisonRow)
        .where(ComparisonRow.comparison_id == comparison_id, ComparisonRow.index > after)
        .order_by(ComparisonRow.index)
        .limit(limit)
    )
    return list(session.scalars(statement))


def list_rows(session: Session, owner: str, comparison_id: str, page: PageQuery) -> Page[ComparisonRowView]:
    """A page of the rows there are so far; an id is the row's index."""
    comparison = find_owned(session, Comparison, owner, comparison_id)
    statement = select(ComparisonRow).where(ComparisonRow.comparison_id == comparison.id)
    index = ComparisonRow.index
    if page.after is not None:
        after = _row_index(page.after)
        statement = statement.where(index < after if page.descending else index > after)
    statement = statement.order_by(index.desc() if page.descending else index.asc()).limit(page.limit + 1)
    rows = list(session.scalars(statement))
    views = row_views(session, comparison, rows)
    return page_of(views, page.limit, lambda view: str(view.index), lambda view: view)


def cancel_comparison(tx: Transaction, owner: str, comparison_id: str) -> None:
    """End a comparison; its rows stay. Raises NotFound, ComparisonFinished; a second time nothing happens."""
    cancel_with_run(tx, Comparison, owner, comparison_id, ComparisonFinished)


def _check_judge(judge: JudgeScorer) -> None:
    """Raises Unprocessable where the service would not ask this address."""
    try:
        check_address(judge.base_url, settings().judge_hosts)
    except AddressRefused as error:
        raise Unprocessable(error.detail, loc=("body", "scorer", "judge", "base_url")) from error


def _row_index(after: str) -> int:
    if after.isascii() and after.isdigit() and len(after) < 10:
        return int(after)
    raise Unprocessable("should be the index of a row", loc=("query", "after"))


def _located(tx: Transaction, owner: str, name: str, kind: str, loc: tuple[str | int, ...]) -> dict[str, Any]:
    """Where a model is; raises Unprocessable where it is none that can do this."""
    _hold(tx, name)
    try:
        found = locate_model(tx, owner, name)
    except NotFound as error:
        raise Unprocessable(f"{error.detail}: /v1/models lists those there are", loc=loc) from error
    if found["kind"] == "model":
        actual = tx.session.get_one(BaseModelRow, found["id"]).kind
    else:
        trained = tx.session.get_one(Artifact, found["id"]).kind
        actual = "reward_model" if trained.startswith("reward_model") else "policy"
    if actual != kind:
        wanted = "a reward model" if kind == "reward_model" else "a model that writes responses"
        raise Unprocessable(f"Should name {wanted}; this one is not", loc=loc)
    base = locate_base(tx, found) if kind == "policy" else None
    return found if base is None else {**found, "base": base}


def _hold(tx: Transaction, name: str) -> None:
    # Until the comparison's row is there to be found by who deletes the model, or the job that made it.
    job_id, colon, _ = name.partition(":")
    statement = (
        select(Job.id).where(Job.id == job_id)
        if colon
        else select(BaseModelRow.name).where(BaseModelRow.name == name)
    )
    tx.session.execute(statement.with_for_update(read=True, key_share=True))


def _ready_dataset(session: Session, owner: str, dataset_id: str) -> Dataset:
    dataset = session.scalar(
        select(Dataset)
        .where(Dataset.id == dataset_id, Dataset.owner == owner, Dataset.deleted_at.is_(None))
        .with_for_update(read=True, key_share=True)
    )
    loc = ("body", "dataset")
    if dataset is None:
        raise Unprocessable("dataset names no dataset of yours: give the id of one", loc=loc)
    if dataset.kind == "text" or dataset.status == DatasetState.INVALID:
        raise Unprocessable("should be a valid dataset of pairs or prompts", loc=loc)
    if dataset.status == DatasetState.AWAITING_CONTENT:
        error = Conflict(f"{dataset_id} awaits its content")
        error.code = "dataset_has_no_content"  # type: ignore[misc]
        raise error
    if dataset.status != DatasetState.READY:
        raise DatasetNotReady(f"{dataset_id} is still validated: try again when it is ready")
    return dataset


def _request(
    tx: Transaction, owner: str, body: ComparisonCreate, inputs: dict[str, list[dict[str, Any]]]
) -> ComparisonRequest:
    """What the run does, with the seed drawn: so that a second attempt repeats the first."""
    seed = secrets.randbelow(MAX_SEED) if body.sampling.seed is None else body.sampling.seed
    trained = []
    if "reward_model" in inputs:
        digest = inputs["reward_model"][0]["sha256"]
        trained = [name for name in body.models if digest in reward_models_behind(tx, owner, name)]
    return ComparisonRequest(
        models=list(body.models),
        prompts=body.prompts,
        dataset=body.dataset,
        limit=(body.limit or DEFAULT_LIMIT) if body.dataset is not None else None,
        sampling=body.sampling.model_copy(update={"seed": seed}),
        scorer=None if body.scorer is None else body.scorer.asked,
        trained_by_scorer=trained,
        blind=body.blind,
    )
