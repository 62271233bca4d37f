"""The numbers that a stage leaves for the report. Torch-free."""

import json
from collections.abc import Mapping
from pathlib import Path

SUMMARY = "summary.json"


def write_summary(output: Path, summary: Mapping[str, object]) -> None:
    """Writes `summary.json` into a stage's output folder; raises ValueError on NaN and infinities."""
    text = json.dumps(summary, indent=2, ensure_ascii=False, allow_nan=False)
    (output / SUMMARY).write_text(text + "\n", encoding="utf-8")
