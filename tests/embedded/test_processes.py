import os
import subprocess
import sys
from pathlib import Path

import pytest

from embedded import processes
from embedded.processes import ProcessId, process_id, program_name
from tests.embedded.waiting import wait_for


def test_a_pid_with_another_start_is_another_process() -> None:
    this = process_id(os.getpid())

    assert this is not None
    assert this.is_running()
    assert not ProcessId(this.pid, "another moment").is_running()


def test_a_zombie_does_not_run() -> None:
    child = subprocess.Popen([sys.executable, "-c", ""])
    wait_for(lambda: process_id(child.pid) is None)
    assert child.returncode is None
    child.wait()


def test_a_program_name_with_brackets_is_no_trap(tmp_path: Path) -> None:
    odd = tmp_path / "a) R (b"
    odd.symlink_to(sys.executable)
    with subprocess.Popen([odd, "-c", "input()"], stdin=subprocess.PIPE) as child:
        wait_for(lambda: program_name(child.pid) == "a) R (b")
        found = process_id(child.pid)
        assert found is not None
        assert found.is_running()
        child.communicate(b"\n")


@pytest.mark.skipif(not Path("/bin/ps").exists(), reason="needs ps")
def test_processes_are_told_apart_without_proc_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_PROC", Path("/nowhere"))
    this = process_id(os.getpid())

    assert this is not None
    assert this.is_running()
    assert process_id(2**22 + 1) is None
