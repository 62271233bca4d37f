"""Workers and their children leave the processor to what answers."""

import os
import subprocess
import sys
from pathlib import Path

from core.settings import Settings
from workers.priority import CHILD

STEPS = 5

SAYS = """
import os, sys
from pathlib import Path
from workers import priority
priority.AUTOGROUP = Path(sys.argv[1])
priority.give_way(int(sys.argv[2]))
print(os.nice(0))
"""


def _niceness_after_giving_way(autogroup: Path, *, own_session: bool) -> int:
    """autogroup: in place of Linux's own file, which not every kernel has."""
    said = subprocess.run(
        [sys.executable, "-c", SAYS, str(autogroup), str(STEPS)],
        stdout=subprocess.PIPE, check=True, start_new_session=own_session,
    )  # fmt: skip
    return int(said.stdout)


def test_a_process_that_gives_way_is_nicer_and_so_is_its_session(tmp_path: Path) -> None:
    autogroup = tmp_path / "autogroup"
    niceness = _niceness_after_giving_way(autogroup, own_session=True)
    assert niceness == os.nice(0) + STEPS
    assert autogroup.read_text() == str(niceness)


def test_the_session_of_a_terminal_is_left_as_it_is(tmp_path: Path) -> None:
    autogroup = tmp_path / "autogroup"
    assert _niceness_after_giving_way(autogroup, own_session=False) == os.nice(0) + STEPS
    assert not autogroup.exists()


def test_a_child_gives_way_to_its_worker_too() -> None:
    assert CHILD > 0
    most = next(each.le for each in Settings.model_fields["worker_niceness"].metadata if hasattr(each, "le"))
    assert most + CHILD <= 19, "a step beyond the last one changes nothing"
