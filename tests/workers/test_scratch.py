"""What killed workers left in the scratch folder."""

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from core import queue
from core.database import open_transaction
from core.ids import new_id
from core.settings import settings
from core.work_items import NewRun
from workers import sweeper
from workers.scratch import LOCK, clear_scratch, own_folder, token_cache

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


def test_what_a_killed_sampler_copied_goes_with_the_next_and_a_living_one_keeps_its_own(
    tmp_path: Path,
) -> None:
    scratch = tmp_path / "not made yet"
    code = (
        "import signal, sys; from pathlib import Path; from workers.scratch import own_folder\n"
        "with own_folder(Path(sys.argv[1]), 'mpo-sampler-') as made:\n"
        "    (made / 'weights').write_text('w'); print(made, flush=True); signal.pause()\n"
    )
    command = [sys.executable, "-c", code, str(scratch)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as killed,
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as living,
    ):
        try:
            left, kept = (Path(p.stdout.readline().strip()) for p in (killed, living) if p.stdout)
            killed.kill()
            killed.wait()
            for folder in (left, kept):
                os.utime(folder, (0, 0))
            with own_folder(scratch, "mpo-sampler-") as ours:
                assert {p.name for p in scratch.iterdir()} == {kept.name, ours.name}
                assert (kept / "weights").exists()
                assert (ours / LOCK).exists()
            assert not ours.exists()
        finally:
            living.send_signal(signal.SIGKILL)


def test_the_sweep_takes_token_ids_that_no_stage_has_read_for_long(
    tmp_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_SCRATCH", str(tmp_path))
    settings_env.setenv("MPO_KEEP_UNREFERENCED_SECONDS", "3600")
    settings.cache_clear()
    cache = token_cache()
    cache.folder.mkdir()
    for key in ("old", "new"):
        cache.path(key).touch()
    os.utime(cache.path("old"), (0, 0))
    settings_env.setattr(sweeper, "step", lambda stopping: stopping.set())
    sweeper.Sweeper()._work()
    assert list(cache.folder.iterdir()) == [cache.path("new")]
