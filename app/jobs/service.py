"""Reading jobs: one, a page of them, their events and their report."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from app.jobs.schemas import EventPage, EventView, JobView
from app.jobs.views import job_view, job_views
from app.marks import Mark
from app.pagination import Page, PageQuery, place_after
from core.database import open_session
from core.errors import NotFound, Unprocessable
from core.states import JobState
from core.tables import Event, Job, JobInput


def find_job(session: Session, owner: str, job_id: str) -> Job:
    """The caller's job; raises NotFound."""
    job = session.scalar(select(Job).where(Job.id == job_id, Job.owner == owner, Job.deleted_at.is_(None)))
    if job is None:
        raise NotFound(f"There is no job {job_id}")
    return job


def read_job(session: Session, mark: Mark, *, owner: str, job_id: str) -> JobView:
    """A job as it is now; its place in the queue is that of the mark, whose ETag speaks of it."""
    return job_view(session, find_job(session, owner, job_id), places=mark.places)


@dataclass(frozen=True)
class JobFilter:
    """Which of the caller's jobs; everything that is given must hold. labels: `name:value` each."""

    status: JobState | None = None
    method: str | None = None
    dataset: str | None = None
    labels: Sequence[str] = ()


def page_ids(session: Session, owner: str, page: PageQuery, which: JobFilter) -> list[str]:
    """Ids of the jobs of a page, and of one more where there are more; raises Unprocessable."""
    return list(session.scalars(_page_of(select(Job.id), owner, page, which)))


def views_by_id(session: Session, ids: Sequence[str], places: Mapping[str, int]) -> dict[str, JobView]:
    """Views of those that there are. places: of queued runs, by their ids."""
    found = list(session.scalars(select(Job).where(Job.id.in_(ids), Job.deleted_at.is_(None))))
    return {view.id: view for view in job_views(session, found, places)}


def list_jobs(session: Session, owner: str, page: PageQuery, which: JobFilter) -> Page[JobView]:
    """A page of the caller's jobs."""
    found = list(session.scalars(_page_of(select(Job), owner, page, which)))
    # The views of a page are made together: as many statements as for one job.
    views = job_views(session, found[: page.limit])
    return Page(
        data=views,
        first_id=views[0].id if views else None,
        last_id=views[-1].id if views else None,
        has_more=len(found) > page.limit,
    )


def _page_of(statement: Select[Any], owner: str, page: PageQuery, which: JobFilter) -> Select[Any]:
    statement = statement.where(Job.owner == owner, Job.deleted_at.is_(None))
    if which.status is not None:
        statement = statement.where(Job.status == which.status)
    if which.method is not None:
        statement = statement.where(Job.method_type == which.method)
    if which.dataset is not None:
        reads_it = JobInput.kind == "dataset", JobInput.name == which.dataset
        statement = statement.where(Job.id.in_(select(JobInput.job_id).where(*reads_it)))
    for label in which.labels:
        statement = statement.where(Job.labels.contains(dict([_label(label)])))
    if (after := place_after(page, "job")) is not None:
        statement = statement.where(Job.id < after if page.descending else Job.id > after)
    return statement.order_by(Job.id.desc() if page.descending else Job.id.asc()).limit(page.limit + 1)


def check_job(owner: str, job_id: str) -> None:
    """Raises NotFound where it is no job of the caller's; a stream keeps no session."""
    with open_session() as session:
        find_job(session, owner, job_id)


def list_events(owner: str, job_id: str, *, after: int, limit: int) -> EventPage:
    """A job's events beyond `after`, oldest first."""
    with open_session() as session:
        job = find_job(session, owner, job_id)
        statement = select(Event).where(Event.job_id == job.id, Event.id > after).order_by(Event.id)
        found = list(session.scalars(statement.limit(limit + 1)))
    views = [EventView.model_validate(event, from_attributes=True) for event in found[:limit]]
    return EventPage(
        data=views,
        first_id=views[0].id if views else None,
        last_id=views[-1].id if views else None,
        has_more=len(found) > limit,
    )


def _label(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon:
        raise Unprocessable("label is written name:value", loc=("query", "label"))
    return name, value
