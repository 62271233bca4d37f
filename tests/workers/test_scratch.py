"""What killed workers left in the scratch folder."""

import os
from datetime import timedelta
from pathlib import Path

import pytest

from core import queue
from core.database import open_transaction
from core.ids import new_id
from core.work_items import NewRun
from workers.scratch import clear_scratch

NOW, HOUR = timedelta(0), timedelta(hours=1)


@pytest.mark.usefixtures("settings_env")
def test_folders_of_fences_that_are_over_go_and_no_others(tmp_path: Path) -> None:
    with open_transaction() as tx:
        run_id = queue.enqueue(tx, NewRun("sft", "gpu", "ann", "sft", {}, key="k"))
        for _ in range(2):
            claimed = queue.claim(tx, "gpu", "wrk_test")
            assert claimed is not None
            if claimed.fence == 1:
                queue.give_back(tx, claimed)
    scratch = tmp_path / "scratch"
    unknown = f"{new_id('run')}-1"
    for name in (f"{run_id}-1", f"{run_id}-2", unknown, "run_notes", "mpo-artifacts"):
        (scratch / name / "output").mkdir(parents=True)
    assert clear_scratch(scratch, HOUR) == 0
    for path in (scratch / f"{run_id}-1" / "output", scratch / f"{run_id}-1"):
        os.utime(path, (0, 0))
    assert clear_scratch(scratch, HOUR) == 1
    assert {p.name for p in scratch.iterdir()} == {f"{run_id}-2", unknown, "run_notes", "mpo-artifacts"}
    assert clear_scratch(scratch, NOW) == 0
    with open_transaction() as tx:
        queue.cancel(tx, run_id or "")
    assert clear_scratch(scratch, NOW) == 1
    assert not (scratch / f"{run_id}-2").exists()
