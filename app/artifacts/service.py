"""Reading artifacts."""

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.artifacts.schemas import ArtifactView, InputView
from core.errors import NotFound
from core.tables import Artifact, Dataset


def read_artifact(session: Session, owner: str, artifact_id: str) -> ArtifactView:
    """The caller's artifact with its lineage, which never changes; raises NotFound."""
    mine = Artifact.id == artifact_id, Artifact.owner == owner, Artifact.deleted_at.is_(None)
    artifact = session.scalar(select(Artifact).where(*mine))
    if artifact is None:
        raise NotFound(f"There is no artifact {artifact_id}")
    view = ArtifactView.model_validate(artifact)
    return view.model_copy(update={"inputs": _to_the_upload(session, view)})


def _to_the_upload(session: Session, view: ArtifactView) -> list[InputView]:
    """Inputs with each dataset's own digest, its upload's: runs read the canonical rows instead."""
    named = [source.id for source in view.inputs if source.kind == "dataset"]
    found = session.execute(select(Dataset.id, Dataset.sha256).where(Dataset.id.in_(named))) if named else ()
    uploads = {dataset_id: sha256 for dataset_id, sha256 in found if sha256 is not None}
    return [
        source.model_copy(update={"sha256": uploads.get(source.id, source.sha256)}) for source in view.inputs
    ]
