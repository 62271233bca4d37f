import json
from pathlib import Path

import pytest

from mpo.summaries import write_summary


def test_a_summary_is_json_that_anyone_can_read(tmp_path: Path) -> None:
    write_summary(tmp_path, {"accuracy": 0.5, "name": "Modèle"})
    assert json.loads((tmp_path / "summary.json").read_text()) == {"accuracy": 0.5, "name": "Modèle"}


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_summary(tmp_path, {"loss_last": float("nan")})
    assert not (tmp_path / "summary.json").exists()
