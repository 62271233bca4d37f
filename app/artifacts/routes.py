"""Artifacts over HTTP."""

from fastapi import APIRouter

from app.artifacts import service
from app.artifacts.schemas import ArtifactView
from app.dependencies import ReadCaller, SessionDep
from app.problems import responses

router = APIRouter(prefix="/v1/artifacts", tags=["artifacts"])


@router.get("/{artifact_id}", responses=responses(404))
def read_artifact(caller: ReadCaller, session: SessionDep, artifact_id: str) -> ArtifactView:
    """Read an artifact and where it comes from."""
    return service.read_artifact(session, caller.owner, artifact_id)
