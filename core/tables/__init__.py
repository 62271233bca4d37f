"""Every mapped class, so that importing this package completes the metadata."""

from core.tables.api_keys import ApiKey
from core.tables.artifacts import Artifact, ArtifactReference
from core.tables.base import Base
from core.tables.comparisons import Comparison, ComparisonRow, Vote
from core.tables.datasets import Dataset
from core.tables.evaluations import Evaluation
from core.tables.idempotency import IdempotencyKey
from core.tables.jobs import Event, Job, JobInput, StageRow
from core.tables.models import BaseModelRow
from core.tables.progress import Metric
from core.tables.runs import Run
from core.tables.sweeps import SweepRow
from core.tables.tallies import TallyRow
from core.tables.workers import WorkerRow

__all__ = [
    "ApiKey",
    "Artifact",
    "ArtifactReference",
    "Base",
    "BaseModelRow",
    "Comparison",
    "ComparisonRow",
    "Dataset",
    "Evaluation",
    "Event",
    "IdempotencyKey",
    "Job",
    "JobInput",
    "Metric",
    "Run",
    "StageRow",
    "SweepRow",
    "TallyRow",
    "Vote",
    "WorkerRow",
]
