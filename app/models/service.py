"""Use cases of models: register, look up, list files, delete."""

import hashlib
from functools import lru_cache
from pathlib import Path

from sqlalchemy import ColumnElement, and_, delete, func, not_, select
from sqlalchemy.orm import Session

from app.models.live_users import live_user_of
from app.models.queries import find_model
from app.models.schemas import FileView, ModelCreate, ModelView
from core.bootstrap import register_model
from core.database import Transaction
from core.errors import Conflict, NotFound, Unprocessable
from core.settings import settings
from core.states import FINISHED_JOB
from core.tables import Artifact, ArtifactReference, BaseModelRow, Job, JobInput, StageRow
from core.work_lookup import locate_model


class ModelExists(Conflict):
    """Another model has this name."""

    code = "model_exists"


class ModelInUse(Conflict):
    """Something that has not finished, or another job, uses this model."""

    code = "model_in_use"


def get_model(session: Session, owner: str, name: str) -> ModelView:
    """The model; raises NotFound where there is none, or where its stage has not succeeded yet."""
    model = find_model(session, owner, name)
    if model is None:
        raise NotFound(f"There is no model {name!r}")
    return model


def allowed_folder(path: str) -> Path:
    """The folder that a path leads to, links followed; raises Unprocessable outside the allowed roots."""
    roots = [root.resolve() for root in settings().allowed_model_roots]
    try:
        folder = Path(path).resolve()
        usable = any(folder.is_relative_to(root) for root in roots) and folder.is_dir()
    except (OSError, ValueError):  # a name too long for the file system, or one that it cannot spell
        usable = False
    if not usable:
        raise Unprocessable("Should be a model folder below one of MPO_MODEL_ROOTS", loc=("body", "path"))
    return folder


def create_model(tx: Transaction, owner: str, body: ModelCreate) -> BaseModelRow:
    """Make a folder a base model of this name; the same folder again changes nothing."""
    folder = allowed_folder(body.path)
    taken = tx.session.get(BaseModelRow, body.name)
    if taken is not None and taken.deleted_at is None and taken.path != str(folder):
        raise ModelExists(model=body.name)
    return register_model(tx, folder, name=body.name, owner=owner)


def delete_base_model(tx: Transaction, name: str) -> None:
    """Forget a base model that nothing unfinished uses; its folder stays.

    Locked in one statement, looked for users in the next, which sees all that had it locked before.
    """
    model = tx.session.get(BaseModelRow, name, with_for_update=True)
    if model is None or model.deleted_at is not None:
        raise NotFound(f"There is no model {name!r}")
    _refuse_if_live(tx, name)
    model.deleted_at = tx.session.scalar(select(func.clock_timestamp()))


def delete_trained_model(tx: Transaction, owner: str, name: str) -> None:
    """Delete what a finished job's stage has trained, unless another job uses it too."""
    job_id, _, stage_name = name.partition(":")
    job = tx.session.scalar(select(Job).where(Job.id == job_id, Job.owner == owner).with_for_update())
    stage = tx.session.get(StageRow, (job_id, stage_name), populate_existing=True) if job else None
    artifact_id = stage.artifacts.get("model") if stage else None
    if job is None or job.deleted_at is not None or stage is None or artifact_id is None:
        raise NotFound(f"There is no model {name!r}")
    if job.status not in FINISHED_JOB:
        raise ModelInUse(f"Job {job_id} has not finished", job=job_id)
    artifact = tx.session.get_one(Artifact, artifact_id, with_for_update=True)
    _refuse_if_live(tx, name)
    _refuse_if_shared(tx, stage, artifact)
    tx.session.execute(delete(ArtifactReference).where(*_references(stage, artifact)))
    stage.artifacts = {output: id_ for output, id_ in stage.artifacts.items() if output != "model"}
    artifact.deleted_at = tx.session.scalar(select(func.clock_timestamp()))


def _references(stage: StageRow, artifact: Artifact) -> list[ColumnElement[bool]]:
    """That a reference to the artifact is the stage's own."""
    return [
        ArtifactReference.artifact_id == artifact.id,
        ArtifactReference.job_id == stage.job_id,
        ArtifactReference.stage_name == stage.name,
    ]


def _refuse_if_shared(tx: Transaction, stage: StageRow, artifact: Artifact) -> None:
    """Stages of one key share an artifact: of other jobs, and of one job."""
    statement = select(ArtifactReference.job_id, ArtifactReference.stage_name).where(
        ArtifactReference.artifact_id == artifact.id, not_(and_(*_references(stage, artifact)))
    )
    other = tx.session.execute(statement.limit(1)).one_or_none()
    if other is not None:
        user = f"{other.job_id}:{other.stage_name}" if other.stage_name else f"Job {other.job_id}"
        raise ModelInUse(f"{user} uses this model too", job=other.job_id)


def _refuse_if_live(tx: Transaction, name: str) -> None:
    reads_it = JobInput.kind == "model", JobInput.name == name
    job_id = tx.session.scalar(
        select(Job.id).join(JobInput).where(*reads_it, Job.status.not_in(FINISHED_JOB)).limit(1)
    )
    user = job_id or live_user_of(tx.session, [name])
    if user is not None:
        raise ModelInUse(f"{user} uses this model and has not finished")


def model_files(tx: Transaction, owner: str, name: str) -> tuple[str, list[FileView]]:
    """Where the model lies in the store, and its files."""
    located = locate_model(tx, owner, name)
    location = str(located["location"])
    if located["kind"] == "artifact":
        artifact = tx.session.get_one(Artifact, located["id"])
        return location, [FileView.model_validate(file) for file in artifact.files]
    folder = Path(location.removeprefix("file://"))
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return location, [_digested(folder, path) for path in paths]


def _digested(folder: Path, path: Path) -> FileView:
    stat = path.stat()
    name = path.relative_to(folder).as_posix()
    return FileView(name=name, bytes=stat.st_size, sha256=_sha256(path, stat.st_size, stat.st_mtime_ns))


@lru_cache(maxsize=10_000)
def _sha256(path: Path, size: int, modified: int) -> str:
    """Size and time are what the cache goes by: base models' folders do not change under a name."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
