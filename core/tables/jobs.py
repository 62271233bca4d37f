"""Jobs, their stages and their events."""

from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, String, text
from sqlalchemy.dialects.postgresql import ARRAY, JSONB
from sqlalchemy.orm import Mapped, mapped_column

from core.logs import bound_request
from core.states import JobState, StageState
from core.tables.base import Base, Counter, CreatedAt, Json, JsonOrNull, Moment, Versioned, one_of


class Job(Versioned, Base):
    """A spec and what became of it. `event_counter` is the id of the job's newest event.

    model, dataset_id: those that the spec names first; `JobInput` has all. weak_accepted: score stages whose
    weak reward models a person has accepted. accepts_weak: read by the version before alone. request_id: of
    the HTTP request that made it; its runs and their log lines carry it.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        CheckConstraint(one_of("status", JobState), name="status"),
        Index("ix_jobs_owner_id", "owner", "id"),
        Index("ix_jobs_open", "owner", postgresql_where=text("status IN ('queued', 'running', 'paused')")),
        Index("ix_jobs_dataset_id", "dataset_id"),
        Index("ix_jobs_labels", "labels", postgresql_using="gin"),
        Index("ix_jobs_deleted_at", "deleted_at", postgresql_where=text("deleted_at IS NOT NULL")),
    )

    id: Mapped[str] = mapped_column(primary_key=True)
    owner: Mapped[str]
    name: Mapped[str]
    status: Mapped[str] = mapped_column(server_default=text("'queued'"))
    method_type: Mapped[str]
    method: Mapped[Json]
    spec: Mapped[Json]
    model: Mapped[str | None]
    dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    eval_dataset_id: Mapped[str | None] = mapped_column(ForeignKey("datasets.id"))
    seed: Mapped[int] = mapped_column(BigInteger)
    priority: Mapped[int]
    labels: Mapped[Json]
    pause_after: Mapped[list[str]] = mapped_column(ARRAY(String))
    pauses_taken: Mapped[list[str]] = mapped_column(ARRAY(String), server_default=text("'{}'"))
    pause: Mapped[JsonOrNull]
    accepts_weak: Mapped[bool] = mapped_column(server_default=text("false"))
    weak_accepted: Mapped[list[str]] = mapped_column(ARRAY(String), server_default=text("'{}'"))
    error: Mapped[JsonOrNull]
    event_counter: Mapped[Counter]
    request_id: Mapped[str | None] = mapped_column(default=bound_request)
    created_at: Mapped[CreatedAt]
    started_at: Mapped[Moment]
    finished_at: Mapped[Moment]
    deleted_at: Mapped[Moment]


class JobInput(Base):
    """A dataset or a model that a job uses and does not make: neither is deleted while the job is live.

    artifact_id: what a trained model's name stood for when the job was made. The name may come to stand for
    another model, as its stage runs anew when its job is resumed with another split; the keys of this job
    speak of the first.
    """

    __tablename__ = "job_inputs"
    __table_args__ = (
        CheckConstraint("kind IN ('dataset', 'model')", name="kind"),
        Index("ix_job_inputs_kind_name", "kind", "name"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    artifact_id: Mapped[str | None] = mapped_column(ForeignKey("artifacts.id"))


class StageRow(Base):
    """One stage of a job's plan: what it will do, its key, and the run or the artifacts that serve it.

    base: the model, made by no stage of the job, that the stage's model began as.
    """

    __tablename__ = "stages"
    __table_args__ = (
        CheckConstraint(one_of("status", StageState), name="status"),
        CheckConstraint("NOT cached OR status = 'succeeded'", name="cached_succeeded"),
        Index("ix_stages_key", "key"),
        Index("ix_stages_run_id", "run_id"),
    )

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    name: Mapped[str] = mapped_column(primary_key=True)
    position: Mapped[int]
    rank: Mapped[int]
    kind: Mapped[str]
    slot: Mapped[str]
    config: Mapped[Json]
    inputs: Mapped[dict[str, list[dict[str, str]]]] = mapped_column(JSONB)
    seed: Mapped[int] = mapped_column(BigInteger)
    key: Mapped[str]
    base: Mapped[str | None]
    status: Mapped[str] = mapped_column(server_default=text("'waiting'"))
    cached: Mapped[bool] = mapped_column(server_default=text("false"))
    run_id: Mapped[str | None]
    artifacts: Mapped[Json]
    summary: Mapped[JsonOrNull]
    error: Mapped[JsonOrNull]
    started_at: Mapped[Moment]
    finished_at: Mapped[Moment]


class Event(Base):
    """Something that happened in a job; ids rise by one within it and commit in order."""

    __tablename__ = "events"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    type: Mapped[str]
    stage: Mapped[str | None]
    message: Mapped[str]
    data: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default=text("'{}'"))
    created_at: Mapped[CreatedAt]
