"""A reporter that keeps what it is told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class RecordingReporter:
    """Never asks for a checkpoint or a stop."""

    metrics: list[dict[str, float]] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def progress(self, step: int, total_steps: int, metrics: Mapping[str, float]) -> None:
        self.metrics.append(dict(metrics))

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def checkpoint_due(self) -> bool:
        return False

    def checkpoint(self, folder: Path, step: int) -> None:
        raise AssertionError("no checkpoint was due")

    def should_stop(self) -> bool:
        return False
