"""Runs over HTTP."""

from fastapi import APIRouter, Response
from fastapi.responses import PlainTextResponse

from app.dependencies import ReadCaller, SessionDep
from app.problems import responses
from app.runs import service
from app.runs.schemas import RunView
from app.streams import POLLED, PollDep, Subject

router = APIRouter(prefix="/v1/runs", tags=["runs"])


@router.get("/{run_id}", response_model=RunView, responses=responses(404) | POLLED)
async def read_run(caller: ReadCaller, run_id: str, poll: PollDep) -> Response:
    """Read a run, and the other runs of the same work."""
    subject = Subject("run", run_id, caller.owner, RunView)
    return await poll.answer(subject, lambda session, _: service.read_run(session, caller.owner, run_id))


@router.get("/{run_id}/log", response_class=PlainTextResponse, responses=responses(404))
def read_log(caller: ReadCaller, session: SessionDep, run_id: str) -> str:
    """Read the end of what the run's process printed."""
    return service.read_log(session, caller.owner, run_id)
