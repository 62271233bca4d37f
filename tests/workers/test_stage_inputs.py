"""Checkpoints on their way into the store: the recorded one is there at every moment."""

from pathlib import Path
from threading import Event

import pytest

from core import queue
from core.database import open_transaction
from core.settings import settings
from core.storage import MANIFEST, Storage, storage
from core.tables import Run
from core.work_items import ClaimedRun, NewRun
from mpo.token_cache import TokenCache
from workers.child_protocol import Checkpointed, Done
from workers.executor import Performance
from workers.stage_inputs import fetch, store_checkpoint

pytestmark = pytest.mark.usefixtures("settings_env")


@pytest.fixture
def claimed() -> ClaimedRun:
    with open_transaction() as tx:
        queue.enqueue(tx, NewRun("sft", "gpu", "ann", "sft", {}, key="k"))
        run = queue.claim(tx, "gpu", "wrk_test")
    assert run is not None
    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "checkpoint"
    made.mkdir()
    (made / "weights").write_bytes(b"w")
    return made


def recorded(claimed: ClaimedRun) -> str:
    with open_transaction() as tx:
        return str((tx.session.get_one(Run, claimed.id).checkpoint or {})["location"])


def test_a_step_that_is_handed_over_again_leaves_the_recorded_one_until_it_is_recorded(
    claimed: ClaimedRun, folder: Path, tmp_path: Path
) -> None:
    performance = Performance(claimed, tmp_path / "scratch", Event())
    performance._hear(Checkpointed(folder, 5))
    first = recorded(claimed)
    # The kernel's own unreadable file: the second breaks off in the middle.
    unreadable = folder / "zzz"
    unreadable.symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match="Input/output error"):
        store_checkpoint(claimed, folder, 5, storage())
    assert recorded(claimed) == first
    assert storage().holds_folder(first)
    unreadable.unlink()
    for _ in range(2):
        performance._hear(Checkpointed(folder, 5))
        assert storage().holds_folder(recorded(claimed))
        left = storage().names(f"runs/{claimed.id}/{claimed.fence}/checkpoints")
        assert left == [Path(recorded(claimed)).name]


def test_what_several_roles_name_is_fetched_once_and_is_one_thing(tmp_path: Path, bucket: str) -> None:
    """Else a model of another role would have another path, and its KL to itself be measured."""
    remote = Storage(bucket)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_bytes(b"w")
    remote.put_folder("runs/run_a/1/out/model", tmp_path / "model")
    remote.put_folder("runs/run_b/1/out/model", tmp_path / "model")
    one, other = (
        {"kind": "artifact", "id": name, "name": name, "location": f"runs/run_{name}/1/out/model"}
        for name in "ab"
    )
    inputs = {"models": [one, other], "sft": [one], "dpo": [other]}
    with open_transaction() as tx:
        queue.enqueue(tx, NewRun("evaluate", "gpu", "ann", "eval_x", {}, inputs, job_id="job_x"))
        run = queue.claim(tx, "gpu", "wrk_test")
    assert run is not None
    found = fetch(run, tmp_path / "work", remote).inputs
    assert found["sft"][0].path == found["models"][0].path
    assert found["dpo"][0].path == found["models"][1].path != found["models"][0].path
    assert len(list((tmp_path / "work" / "inputs").rglob("weights"))) == 2
    assert (found["dpo"][0].path / "weights").read_bytes() == b"w"


def test_a_superseded_checkpoint_that_cannot_be_removed_costs_no_run(
    claimed: ClaimedRun, folder: Path, tmp_path: Path, store: Path
) -> None:
    performance = Performance(claimed, tmp_path / "scratch", Event())
    performance._hear(Checkpointed(folder, 5))
    manifest = store / recorded(claimed) / MANIFEST
    manifest.unlink()
    manifest.mkdir()
    performance._hear(Checkpointed(folder, 6))
    assert recorded(claimed).endswith("/6")


def test_a_run_that_left_less_than_its_kind_promises_fails_and_is_not_done_again(
    claimed: ClaimedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Performance, "_child", lambda *_: Done({}, "cpu", 1))
    Performance(claimed, tmp_path / "scratch", Event()).perform()
    with open_transaction() as tx:
        run = tx.session.get_one(Run, claimed.id)
    assert (run.state, (run.error or {})["message"]) == ("failed", "The sft left no model, its output model")


def test_children_of_a_machine_share_token_ids_in_the_scratch_folder(
    claimed: ClaimedRun, tmp_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    settings_env.setenv("MPO_SCRATCH", str(tmp_path / "scratch"))
    settings_env.setenv("MPO_TOKEN_CACHE_BYTES", "77")
    settings.cache_clear()
    for folder in ("one", "two"):
        task = fetch(claimed, tmp_path / folder, storage())
        assert task.tokens == TokenCache(tmp_path / "scratch" / "tokens", 77)


def test_a_child_is_told_of_the_worker_s_ranks(
    claimed: ClaimedRun, tmp_path: Path, settings_env: pytest.MonkeyPatch
) -> None:
    task = fetch(claimed, tmp_path / "one", storage())
    assert (task.ranks, task.sharded) == (1, False)
    settings_env.setenv("MPO_RANKS", "4")
    settings_env.setenv("MPO_SHARDED", "1")
    settings.cache_clear()
    task = fetch(claimed, tmp_path / "four", storage())
    assert (task.ranks, task.sharded) == (4, True)
