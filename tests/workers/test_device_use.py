"""The lock by which a sampler sees that a training is at work, between real processes."""

import fcntl
import logging
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from workers import device_use
from workers.device_use import device_in_use, is_in_use

_TRAINING = """
import signal, sys
from pathlib import Path
from workers.device_use import device_in_use
with device_in_use(Path(sys.argv[1])):
    print("begun", flush=True)
    signal.pause()
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "not made yet" / "device.lock"


@contextmanager
def training(file: Path) -> Iterator["subprocess.Popen[bytes]"]:
    with subprocess.Popen([sys.executable, "-c", _TRAINING, str(file)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"begun\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_training_is_seen_until_the_last_one_is_killed(file: Path) -> None:
    assert not is_in_use(file)
    with training(file) as one, training(file) as other:
        for process in (one, other):
            assert is_in_use(file)
            process.kill()
            process.wait()
    assert not is_in_use(file)


def test_a_training_is_seen_in_a_file_that_was_removed_before_it_began(file: Path) -> None:
    assert not is_in_use(file)
    file.unlink()
    with device_in_use(file):
        assert is_in_use(file)
    assert not is_in_use(file)


def test_looking_keeps_no_training_from_beginning(file: Path) -> None:
    assert not is_in_use(file)
    with device_in_use(file), device_in_use(file):
        assert is_in_use(file)


def test_a_sampler_that_is_frozen_while_it_looks_holds_up_no_training(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(device_use, "TRIES", 3)
    is_in_use(file)
    with file.open() as held, caplog.at_level(logging.WARNING), ExitStack() as training:
        fcntl.flock(held, fcntl.LOCK_EX)
        training.enter_context(device_in_use(file))
        assert "does not see this training: BlockingIOError" in caplog.text


def test_a_folder_without_locks_fails_no_training(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "folder").write_text("a file")
    file = tmp_path / "folder" / "device.lock"
    with caplog.at_level(logging.WARNING), device_in_use(file):
        assert "does not see this training: FileExistsError" in caplog.text
    with pytest.raises(OSError, match="File exists"):
        is_in_use(file)


def test_an_error_of_the_training_itself_is_not_taken_for_the_lock_s(file: Path) -> None:
    with pytest.raises(OSError, match="the store is full"), device_in_use(file):
        raise OSError("the store is full")
    assert not is_in_use(file)
