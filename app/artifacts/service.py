"""Reading artifacts."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts.schemas import ArtifactView
from core.errors import NotFound
from core.tables import Artifact


def read_artifact(session: Session, owner: str, artifact_id: str) -> ArtifactView:
    """The caller's artifact with its lineage; raises NotFound."""
    mine = Artifact.id == artifact_id, Artifact.owner == owner, Artifact.deleted_at.is_(None)
    artifact = session.scalar(select(Artifact).where(*mine))
    if artifact is None:
        raise NotFound(f"There is no artifact {artifact_id}")
    return ArtifactView.model_validate(artifact)
