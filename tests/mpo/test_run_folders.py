import io
import json
import shutil
import threading
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from mpo import run_folders
from mpo.run_folders import FolderReporter, StageFolder, clock, folder_digest


def checkpoint_of(folder: Path, text: str) -> Path:
    folder.mkdir()
    (folder / "state.safetensors").write_text(text)
    return folder


def steps_of(folder: StageFolder) -> list[int]:
    return [json.loads(line)["step"] for line in (folder.path / "metrics.jsonl").read_text().splitlines()]


def test_a_finished_stage_is_done_for_its_key_alone(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    assert folder.open() is None
    assert not folder.is_done()
    (folder.path / "summary.json").write_text("{}")
    folder.finish()
    assert folder.is_done()
    assert not StageFolder(tmp_path / "dpo", "k2").is_done()


def test_a_stage_is_done_only_when_its_outputs_are_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    done: list[bool] = []
    monkeypatch.setattr(
        "mpo.run_folders.sync_tree", lambda path: done.append(StageFolder(path, "k1").is_done())
    )
    folder.finish()
    assert done == [False]
    assert folder.is_done()


def test_an_attempt_goes_on_from_the_newest_checkpoint_of_the_same_key(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    for step in (1, 2, 3, 4):
        folder.append_metrics(step, {"loss": 1.0 / step})
        if step in (1, 3):
            folder.keep_checkpoint(checkpoint_of(tmp_path / f"checkpoint-{step}", str(step)), step)
    (folder.path / "half-written").write_text("")
    resume = folder.open()
    assert resume is not None
    assert (resume / "state.safetensors").read_text() == "3"
    assert [path.name for path in resume.parent.iterdir()] == ["3"]
    assert not (folder.path / "half-written").exists()
    assert steps_of(folder) == [1, 2, 3]  # the fourth step is taken again
    assert StageFolder(tmp_path / "dpo", "k2").open() is None
    assert not (folder.path / "metrics.jsonl").exists()


class Killed(BaseException):
    """The process is gone."""


OPERATIONS = (
    (shutil, "rmtree"),
    (shutil, "copytree"),
    (Path, "rename"),
    (run_folders, "sync_tree"),
    (run_folders, "sync"),
)


def kill_at(call: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raises Killed at this call of any of the operations, from 0 on; of a removal, in the midst of it."""
    calls = count()

    def killed(name: str, operation: Callable[..., Any]) -> Callable[..., Any]:
        def perform(path: Path, *values: Any, **named: Any) -> Any:
            if next(calls) < call:
                return operation(path, *values, **named)
            if name == "rmtree" and path.exists():
                next(path.iterdir()).unlink()
            raise Killed

        return perform

    for owner, name in OPERATIONS:
        monkeypatch.setattr(owner, name, killed(name, getattr(owner, name)))


# What is left over is removed, copied, synced, renamed, synced, and the one before is removed.
@pytest.mark.parametrize(("call", "left"), list(enumerate(["first"] * 4 + ["second"] * 2)))
def test_a_kill_while_a_step_s_second_checkpoint_is_kept_leaves_a_whole_one(
    call: int, left: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    folder.keep_checkpoint(checkpoint_of(tmp_path / "first", "first"), 7)
    for step in (7, 8):
        folder.append_metrics(step, {"loss": 1.0})
    second = checkpoint_of(tmp_path / "second", "second")
    with monkeypatch.context() as patch:
        kill_at(call, patch)
        with pytest.raises(Killed):
            folder.keep_checkpoint(second, 7)
    resume = folder.open()
    assert resume is not None
    assert (resume / "state.safetensors").read_text() == left
    assert steps_of(folder) == [7]
    for text in ("third", "fourth"):
        folder.keep_checkpoint(checkpoint_of(tmp_path / text, text), 7)
        (kept,) = (folder.path / "checkpoints").iterdir()
        assert folder.open() == kept
        assert (kept / "state.safetensors").read_text() == text


def test_a_kill_while_an_attempt_begins_loses_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    folder.append_metrics(1, {"loss": 1.0})
    folder.keep_checkpoint(checkpoint_of(tmp_path / "first", "first"), 1)

    def torn(path: Path, *_: Any, **__: Any) -> None:
        path.open("w").close()
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", torn)
        with pytest.raises(Killed):
            folder.open()
    assert folder.open() == folder.path / "checkpoints" / "1"


def test_a_kill_while_a_stage_is_marked_as_done_loses_no_checkpoint(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "sft", "key")
    folder.open()
    folder.keep_checkpoint(checkpoint_of(tmp_path / "made", "first"), 3)
    assert folder.has_checkpoint()
    assert not StageFolder(tmp_path / "sft", "another").has_checkpoint()
    (tmp_path / "sft" / "key").write_text("")
    resume = folder.open()
    assert resume is not None
    assert (resume / "state.safetensors").read_text() == "first"
    assert not (tmp_path / "sft" / "key").exists()


def test_a_done_stage_of_another_key_is_emptied(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    (folder.path / "model").mkdir()
    folder.finish()
    other = StageFolder(tmp_path / "dpo", "k2")
    assert other.open() is None
    assert [path.name for path in other.path.iterdir()] == ["started"]
    assert not folder.is_done()


def test_metrics_survive_numbers_that_are_not_finite_and_a_line_cut_off(tmp_path: Path) -> None:
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    folder.append_metrics(1, {"loss": float("nan")})
    assert json.loads((folder.path / "metrics.jsonl").read_text()) == {"step": 1, "loss": None}
    folder.keep_checkpoint(checkpoint_of(tmp_path / "checkpoint-1", ""), 1)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 1, "lo')
    folder.open()
    assert steps_of(folder) == [1]


def test_the_reporter_prints_progress_with_the_time_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("mpo.run_folders.time.monotonic", lambda: now[0])
    folder = StageFolder(tmp_path / "dpo", "k1")
    folder.open()
    out, stop = io.StringIO(), threading.Event()
    reporter = FolderReporter(folder, "dpo", 30.0, stop, out, last_checkpoint=100.0)
    for step in (1, 2, 3, 4):
        now[0] += 20
        reporter.progress(step, 4, {"loss": 0.5})
    lines = out.getvalue().splitlines()
    assert lines == [
        "dpo  1/4  loss 0.5",
        "dpo  2/4  loss 0.5  ETA 0:00:40",
        "dpo  3/4  loss 0.5  ETA 0:00:20",
        "dpo  4/4  loss 0.5",
    ]
    assert steps_of(folder) == [1, 2, 3, 4]
    assert reporter.checkpoint_due()
    reporter.checkpoint(checkpoint_of(tmp_path / "checkpoint-4", ""), 4)
    assert not reporter.checkpoint_due()
    assert not reporter.should_stop()
    stop.set()
    assert reporter.should_stop()


def test_clock_shows_hours() -> None:
    assert (clock(59.6), clock(3723)) == ("0:01:00", "1:02:03")


def test_a_folders_digest_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = folder_digest(tmp_path)
    (tmp_path / ".hidden").write_text("")
    assert folder_digest(tmp_path) == first
    (tmp_path / "a").write_text("2")
    assert folder_digest(tmp_path) != first
