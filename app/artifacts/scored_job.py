"""The scores of a job, found in the store and opened: what histogram, previews and pairs are read from."""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.jobs.service import find_job
from core.errors import Conflict
from core.settings import settings
from core.states import FINISHED_JOB, StageState
from core.storage import storage
from core.tables import Artifact, Dataset, Job, StageRow
from mpo.config import SplitStage
from mpo.parts import TARGETS

if TYPE_CHECKING:
    from mpo.gap_index import GapIndex, Scores


class NeverScored(Conflict):
    """The job has no stage of kind score: no pair of it is ever given a reward gap."""

    code, title = "no_scores", "The job scores no pairs"


class NotScoredYet(Conflict):
    """The pairs have no rewards yet: wait until the stage score has succeeded."""

    code, title = "not_scored_yet", "The pairs are not scored yet"
    retryable = True


class EndedUnscored(NotScoredYet):
    """The job has ended before its pairs were scored: no wait brings their rewards."""

    retryable = False


class DataDeleted(Conflict):
    """The pairs were a dataset's that has been deleted: their gaps are known, their texts are not."""

    code, title = "dataset_deleted", "The pairs have been deleted"


@dataclass(frozen=True)
class ScoredJob:
    """A job whose pairs have rewards. split: its configuration, whether it has run (`parts`) or not yet; with
    every default where the job has none.

    reward_model: name of what PPO maximizes, else of what scored first. scores: a local file. parts: files by
    output name of the split, once it has run. find_data: see `data`.
    """

    job: Job
    reward_model: str
    scored_by: str
    split: SplitStage
    scores: Path
    parts: dict[str, Path] | None
    find_data: Callable[[], Path]

    def data(self) -> Path:
        """The rows that the split reads, as a local file; looked up by the session that found the job.

        Raises NotScoredYet where they are not made yet, DataDeleted where they are a dataset's that has gone.
        """
        return self.find_data()

    def index(self) -> "GapIndex":
        """The gaps in order: of the split's own index, else in memory."""
        from mpo.gap_index import open_index

        return open_index(self.parts["gaps"]) if self.parts else _indexed(self.scores)

    def read_scores(self) -> "Scores":
        """The rewards of every pair."""
        return _scores(self.scores)


def find_scored_job(session: Session, owner: str, job_id: str) -> ScoredJob:
    """The caller's job with its scores: those of its first split, or of its first score where it splits none.

    Stages are found by their kind, as their names are free. Raises NotFound, NeverScored, NotScoredYet.
    """
    job = find_job(session, owner, job_id)
    rows = select(StageRow).where(StageRow.job_id == job.id).order_by(StageRow.position)
    stages = {stage.name: stage for stage in session.scalars(rows)}
    split = _first(stages, "split")
    score = _scored_for(split, stages) if split is not None else _first(stages, "score")
    if score is None:
        raise NeverScored()
    if score.status != StageState.SUCCEEDED:
        raise EndedUnscored() if job.status in FINISHED_JOB else NotScoredYet()
    files: dict[str, Path] = {}
    if split is not None and split.status == StageState.SUCCEEDED:
        files = {output: _output(session, split, output) for output in (*TARGETS, "split", "gaps")}
    return ScoredJob(
        job=job,
        reward_model=_reward_model(job, score, stages),
        scored_by=str((score.summary or {}).get("scored_by") or score.config["scheme"]),
        split=SplitStage.model_validate(split.config if split is not None else {}),
        scores=_output(session, score, "scores"),
        parts=files or None,
        find_data=partial(_data, session, split or score, stages),
    )


def _first(stages: Mapping[str, StageRow], kind: str) -> StageRow | None:
    return next((stage for stage in stages.values() if stage.kind == kind), None)


def _scored_for(split: StageRow, stages: Mapping[str, StageRow]) -> StageRow:
    return stages[split.inputs["scores"][0]["name"]]


def _data(session: Session, stage: StageRow, stages: Mapping[str, StageRow]) -> Path:
    """The file of the rows that a stage reads: another stage's output, or a dataset's."""
    source = stage.inputs["data"][0]
    if source["kind"] == "stage":
        made_by = stages[source["name"]]
        if made_by.status != StageState.SUCCEEDED:
            raise NotScoredYet(f"The rows of {made_by.name} are not made yet: wait until it has succeeded")
        return _output(session, made_by, source["output"])
    dataset = session.get_one(Dataset, source["name"])
    if dataset.deleted_at is not None:
        raise DataDeleted(f"{dataset.id} has been deleted, and the texts of the pairs with it")
    return _local(dataset.rows_location or "", dataset.id)


def _output(session: Session, stage: StageRow, output: str) -> Path:
    artifact = session.get_one(Artifact, stage.artifacts[output])
    return _local(artifact.location, artifact.id)


def _reward_model(job: Job, score: StageRow, stages: Mapping[str, StageRow]) -> str:
    ppo = _first(stages, "ppo")
    source = ppo.inputs["reward_model"][0] if ppo is not None else score.inputs["reward_models"][0]
    return f"{job.id}:{source['name']}" if source["kind"] == "stage" else source["name"]


@lru_cache(maxsize=4)
def _scores(path: Path) -> "Scores":
    from mpo.gap_index import read_scores

    # An artifact never changes, so neither does what was read from it.
    return read_scores(path)


@lru_cache(maxsize=4)
def _indexed(path: Path) -> "GapIndex":
    from mpo.gap_index import index_scores

    return index_scores(_scores(path))


def _local(location: str, id_: str) -> Path:
    """The file on this machine; fetched once where the store is elsewhere. id_: of what never changes."""
    local = storage().local_path(location)
    if local is not None:
        return local
    kept = settings().scratch_or_temporary / "mpo-artifacts" / id_
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
            # Renamed only when whole: another request may fetch the same artifact meanwhile.
            storage().fetch(location, Path(folder) / "file").rename(kept)
    return kept
