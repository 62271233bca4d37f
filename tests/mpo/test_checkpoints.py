import math
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from mpo.checkpoints import complete_folder, load_state, save_state

FILE = "state.safetensors"


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
    losses = [0.1, 1 / 3, math.nan, math.inf]
    plain = {"steps": 3, "halved": False, "stopped": None, "losses": losses, "of": {1: "a", "1": {}}}
    save_state(tmp_path / FILE, {"optimizer": optimizer.state_dict(), **plain})
    state = load_state(tmp_path / FILE)
    kept, own = state.pop("optimizer"), optimizer.state_dict()
    assert repr(state) == repr(plain)
    assert type(state["halved"]) is bool
    assert kept["state"].keys() == {0}
    for name, tensor in own["state"][0].items():
        assert torch.equal(kept["state"][0][name], tensor)
        assert kept["state"][0][name].dtype == tensor.dtype
        assert kept["state"][0][name].shape == tensor.shape
    optimizer.load_state_dict(kept)
    assert repr(optimizer.state_dict()) == repr(own)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.uint8])
def test_parts_of_tensors_are_kept_without_the_rest(dtype: torch.dtype, tmp_path: Path) -> None:
    large = torch.arange(20_000).to(dtype).reshape(100, 200)
    parts = {
        "row": large[3],
        "column": large[:, 5],
        "turned": large[:4, :4].T,
        "none": large[:0],
        "one": large[0, 1],
    }
    save_state(tmp_path / FILE, parts)
    state = load_state(tmp_path / FILE)
    assert all(torch.equal(state[name], part) for name, part in parts.items())
    assert (tmp_path / FILE).stat().st_size < 10_000


def test_what_was_loaded_outlives_its_file(tmp_path: Path) -> None:
    tensor = torch.arange(100_000)
    save_state(tmp_path / FILE, {"kept": [tensor]})
    state = load_state(tmp_path / FILE)
    (tmp_path / FILE).write_bytes(b"")
    assert torch.equal(state["kept"][0], tensor)


def test_what_a_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        save_state(tmp_path / FILE, {"path": tmp_path})
    with pytest.raises(ValueError, match="a/b"):
        save_state(tmp_path / FILE, {"a/b": torch.zeros(1), "a": {"b": torch.ones(1)}})
    assert not (tmp_path / FILE).exists()


def test_code_in_a_state_file_is_refused(tmp_path: Path) -> None:
    class Payload:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"model": Payload()}, tmp_path / FILE)
    with pytest.raises(SafetensorError):
        load_state(tmp_path / FILE)
    assert not (tmp_path / "ran").exists()
