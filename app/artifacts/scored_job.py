"""The scores of a job, found in the store and opened: what histogram, previews and pairs are read from."""

import tempfile
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.service import find_job
from core.errors import Conflict
from core.settings import settings
from core.states import StageState
from core.storage import storage
from core.tables import Artifact, Job, StageRow
from mpo.config import SplitStage
from mpo.parts import TARGETS

if TYPE_CHECKING:
    from mpo.gap_index import GapIndex, Scores


class NotScoredYet(Conflict):
    """The pairs have no rewards yet: wait until the stage score has succeeded."""

    code, title = "not_scored_yet", "The pairs are not scored yet"
    retryable = True


@dataclass(frozen=True)
class ScoredJob:
    """A job whose pairs have rewards. split: its configuration, whether it has run (`parts`) or not yet.

    scores, data: local files. parts: files by output name of the split, once it has run.
    """

    job: Job
    scored_by: str
    split: SplitStage
    scores: Path
    data: Path
    parts: dict[str, Path] | None

    def index(self) -> "GapIndex":
        """The gaps in order: of the split's own index, else in memory."""
        from mpo.gap_index import open_index

        return open_index(self.parts["gaps"]) if self.parts else _indexed(self.scores)

    def read_scores(self) -> "Scores":
        """The rewards of every pair."""
        return _scores(self.scores)


def find_scored_job(session: Session, owner: str, job_id: str) -> ScoredJob:
    """The caller's job with its scores; raises NotFound, NotScoredYet."""
    job = find_job(session, owner, job_id)
    stages = {s.name: s for s in session.scalars(select(StageRow).where(StageRow.job_id == job.id))}
    score = next((s for s in stages.values() if s.kind == "score"), None)
    split = next((s for s in stages.values() if s.kind == "split"), None)
    if score is None or split is None or score.status != StageState.SUCCEEDED:
        raise NotScoredYet()
    source = split.inputs["data"][0]
    wanted = {"scores": score.artifacts["scores"], "data": stages[source["name"]].artifacts[source["output"]]}
    if split.status == StageState.SUCCEEDED:
        wanted |= {output: split.artifacts[output] for output in (*TARGETS, "split", "gaps")}
    rows = session.scalars(select(Artifact).where(Artifact.id.in_(wanted.values())))
    artifacts = {artifact.id: artifact for artifact in rows}
    files = {name: _local(artifacts[artifact_id]) for name, artifact_id in wanted.items()}
    return ScoredJob(
        job=job,
        scored_by=str((score.summary or {}).get("scored_by") or score.config["scheme"]),
        split=SplitStage.model_validate(split.config),
        scores=files.pop("scores"),
        data=files.pop("data"),
        parts=files or None,
    )


@lru_cache(maxsize=4)
def _scores(path: Path) -> "Scores":
    from mpo.gap_index import read_scores

    # An artifact never changes, so neither does what was read from it.
    return read_scores(path)


@lru_cache(maxsize=4)
def _indexed(path: Path) -> "GapIndex":
    from mpo.gap_index import index_scores

    return index_scores(_scores(path))


def _local(artifact: Artifact) -> Path:
    local = storage().local_path(artifact.location)
    if local is not None:
        return local
    kept = (settings().scratch or Path(tempfile.gettempdir())) / "mpo-artifacts" / artifact.id
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            # Renamed only when whole: another request may fetch the same artifact meanwhile.
            storage().fetch(artifact.location, Path(folder) / "file").rename(kept)
    return kept
