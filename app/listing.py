"""Pages whose objects are kept as they were answered: only what has changed since is read and written anew.

A page of jobs holds hundreds of stages, and hardly one has changed since somebody looked a moment ago. What
tells is the same mark as for a single object (`app/marks.py`), and both share what this process has at hand.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import Request, Response
from pydantic import BaseModel
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.marks import Mark, MarkedNoun, read_marks
from app.pagination import Page
from app.streams import Bodies, Subject, etag_of
from core.database import open_session

ReadIds = Callable[[Session], list[str]]
"""The ids of a page in its order, and one more where there are more."""
MakeViews = Callable[[Session, Sequence[str], Mapping[str, int]], Mapping[str, BaseModel]]
"""Views by id of those that there are; the mapping has the places of queued runs."""
Marked = Mapping[str, Mark]


async def answer_page(
    request: Request,
    noun: MarkedNoun,
    owner: str,
    view: type[BaseModel],
    limit: int,
    read_ids: ReadIds,
    make: MakeViews,
) -> Response:
    """A page of one owner's objects as JSON, in the shape of `Page`."""
    ids, marks = await run_in_threadpool(_look, noun, read_ids, limit)
    bodies: Bodies = request.app.state.bodies
    subjects = {id_: Subject(noun, id_, owner, view) for id_ in ids[:limit] if id_ in marks}
    etags = {id_: etag_of(subject, marks[id_]) for id_, subject in subjects.items()}
    found = {id_: bodies.get(subjects[id_].watch, etag) for id_, etag in etags.items()}
    missing = {id_: marks[id_] for id_, body in found.items() if body is None}
    if missing:
        made, after = await run_in_threadpool(_make, noun, make, missing)
        for id_, body in made.items():
            if id_ in after and after[id_].changes == missing[id_].changes:
                # Else it is newer than its ETag says.
                bodies.keep(subjects[id_].watch, etags[id_], body)
        found |= {id_: made.get(id_) for id_ in missing}
    there = {id_: body for id_, body in found.items() if body is not None}
    return Response(_page(there, has_more=len(ids) > limit), media_type="application/json")


def _look(noun: MarkedNoun, read_ids: ReadIds, limit: int) -> tuple[list[str], Marked]:
    with open_session() as session:
        ids = read_ids(session)
        return ids, _marks(session, noun, ids[:limit], places=True)


def _make(noun: MarkedNoun, make: MakeViews, missing: Marked) -> tuple[dict[str, bytes], Marked]:
    places = {run_id: place for mark in missing.values() for run_id, place in mark.places.items()}
    with open_session() as session:
        views = make(session, list(missing), places)
        made = {id_: view.model_dump_json().encode() for id_, view in views.items()}
        return made, _marks(session, noun, list(missing), places=False)


def _marks(session: Session, noun: MarkedNoun, ids: Sequence[str], *, places: bool) -> Marked:
    found = read_marks(session, [(noun, id_) for id_ in ids], places=places)
    return {id_: mark for (_, id_), mark in found.items()}


def _page(bodies: Mapping[str, bytes], *, has_more: bool) -> bytes:
    """`Page` around what is JSON already."""
    ids: list[str | None] = [*bodies] or [None]
    around = Page[Any](data=[], first_id=ids[0], last_id=ids[-1], has_more=has_more)
    before, after = around.model_dump_json().encode().split(b'"data":[]', 1)
    return before + b'"data":[' + b",".join(bodies.values()) + b"]" + after
