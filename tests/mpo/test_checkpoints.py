import pickle
from pathlib import Path

import pytest
import torch

from mpo.checkpoints import complete_folder, load_state, save_state


def test_a_folder_appears_whole_under_its_name(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    with complete_folder(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_failure_leaves_the_previous_folder_alone(tmp_path: Path) -> None:
    target = tmp_path / "kept"
    with complete_folder(target) as folder:
        (folder / "a").write_text("1")

    def fail() -> None:
        with complete_folder(target) as folder:
            (folder / "a").write_text("2")
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_newer_folder_replaces_the_older(tmp_path: Path) -> None:
    for text in ("1", "2"):
        with complete_folder(tmp_path / "kept") as folder:
            (folder / text).write_text(text)
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["2"]


def test_state_comes_back_bit_for_bit(tmp_path: Path) -> None:
    parameter = torch.nn.Parameter(torch.randn(3))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    save_state(tmp_path / "s.pt", {"optimizer": optimizer.state_dict(), "steps": 3, "losses": [0.1, 0.2]})
    state = load_state(tmp_path / "s.pt")
    assert (state["steps"], state["losses"]) == (3, [0.1, 0.2])
    kept = state["optimizer"]["state"][0]["exp_avg"]
    assert torch.equal(kept, optimizer.state_dict()["state"][0]["exp_avg"])


def test_code_in_a_state_file_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Payload()}, tmp_path / "s.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_state(tmp_path / "s.pt")
    assert not (tmp_path / "ran").exists()
