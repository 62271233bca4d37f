import os
import re
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from embedded import stack
from embedded.errors import AlreadyRunning, PortTaken, StateUnusable
from embedded.state import StateFolder


def test_the_key_is_made_once_for_its_owner_alone(tmp_path: Path) -> None:
    state = StateFolder.at(tmp_path)
    key = state.api_key()

    assert re.fullmatch(r"mpo_sk_[A-Za-z0-9_-]{43}", key)
    assert stat.S_IMODE(state.api_key_file.stat().st_mode) == 0o600
    assert StateFolder.at(tmp_path).api_key() == key


def test_a_new_folder_is_its_owners_alone(tmp_path: Path) -> None:
    state = StateFolder.at(tmp_path / "new")

    assert stat.S_IMODE(state.root.stat().st_mode) == 0o700


def test_a_folder_is_held_by_one_process_and_names_it(tmp_path: Path) -> None:
    state = StateFolder.at(tmp_path)
    with state.locked(), pytest.raises(AlreadyRunning, match=rf"process {os.getpid()}"), state.locked():
        pass
    assert not state.is_locked()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "import signal, sys; from pathlib import Path; from embedded.state import StateFolder\n"
        "with StateFolder.at(Path(sys.argv[1])).locked(): print('held', flush=True); signal.pause()"
    )
    state = StateFolder.at(tmp_path)
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        assert state.is_locked()
        holder.kill()
        holder.wait()
    assert not state.is_locked()


@pytest.mark.parametrize("name", ["short", "long" * 30])
def test_socket_paths_fit_whatever_the_folder(tmp_path: Path, name: str) -> None:
    state = StateFolder.at(tmp_path / name)
    folder = state.fresh_sockets()

    (folder / "pg").mkdir()
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(folder / "pg/.s.PGSQL.5432"))
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    state.remove_sockets()
    assert not folder.exists()


def test_scratch_is_emptied_and_links_are_not_followed(tmp_path: Path) -> None:
    state = StateFolder.at(tmp_path / "state")
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (state.scratch / "link").symlink_to(tmp_path / "kept")
    (state.scratch / "file").touch()
    (state.scratch / "left/deeper").mkdir(parents=True)

    state.empty_scratch()

    assert list(state.scratch.iterdir()) == []
    assert (tmp_path / "kept/file").exists()


def test_a_file_in_place_of_the_folder_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateUnusable, match="File exists"):
        StateFolder.at(tmp_path / "file")


def test_down_where_nothing_ever_ran_leaves_no_trace(tmp_path: Path) -> None:
    assert stack.down(tmp_path) is False
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_said_before_anything_starts(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            stack.up(tmp_path, port, on_ready=print)
    assert StateFolder.at(tmp_path).recorded() == []
