import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGMLQuantizationType

from embedded import packaged_models
from embedded.added_models import add_model, register
from embedded.errors import ModelNotAdded
from embedded.packaged_models import PACKAGED
from embedded.services import _base_models
from embedded.state import StateFolder
from mpo.policies import load_policy
from tests.embedded.test_up_down import Up
from tests.mpo.tiny import write_policy
from tests.mpo.tiny_gguf import write_gguf


@pytest.fixture
def state(tmp_path: Path) -> StateFolder:
    return StateFolder.at(tmp_path / "state")


def add(source: str | Path, state: StateFolder, name: str | None = None) -> Path:
    return add_model(str(source), name, state, lambda _: None)


def test_a_folder_s_model_is_copied_without_what_else_lies_there(tmp_path: Path, state: StateFolder) -> None:
    source = write_policy(tmp_path / "mine")
    (source / "optimizer.pt").write_bytes(b"")
    (source / "code.py").write_text("")
    added = add(source, state)
    assert added == state.models / "mine"
    assert {path.name for path in source.iterdir()} - {path.name for path in added.iterdir()} == {
        "optimizer.pt",
        "code.py",
    }
    load_policy(added)
    assert json.loads((state.models / "mine.json").read_text())["source"] == str(source)


def test_what_was_added_is_registered_at_the_next_start(tmp_path: Path, state: StateFolder) -> None:
    added = add(write_policy(tmp_path / "mine"), state, "renamed")
    settings = _base_models(state)
    assert settings["MPO_MODELS"].endswith(f":{added}")
    assert settings["MPO_MODEL_ROOTS"].endswith(f":{state.models}")


def test_the_same_again_changes_nothing_and_another_needs_a_name(tmp_path: Path, state: StateFolder) -> None:
    source = write_policy(tmp_path / "mine")
    assert add(source, state) == add(source, state)
    other = write_policy(tmp_path / "elsewhere" / "mine", seed=1)
    with pytest.raises(ModelNotAdded, match="another model mine"):
        add(other, state)
    assert add(other, state, "mine-2").name == "mine-2"


@pytest.mark.parametrize("name", ["tiny", "-x", "a b", "x" * 65])
def test_names_that_the_service_would_refuse_are_refused(
    tmp_path: Path, state: StateFolder, name: str
) -> None:
    with pytest.raises(ModelNotAdded, match="--name"):
        add(write_policy(tmp_path / "mine"), state, name)


def test_a_model_that_cannot_be_used_leaves_nothing(tmp_path: Path, state: StateFolder) -> None:
    source = write_policy(tmp_path / "mine")
    (source / "model.safetensors").unlink()
    with pytest.raises(ModelNotAdded, match=r"\Ait has no safetensors[^\n]+\Z"):
        add(source, state)
    assert list(state.models.iterdir()) == list(state.scratch.iterdir()) == []


def test_no_model_names_what_there_is(tmp_path: Path, state: StateFolder) -> None:
    with pytest.raises(ModelNotAdded, match="smollm2-135m"):
        add(tmp_path / "nothing", state)


def test_a_packaged_gguf_becomes_a_model(
    tmp_path: Path, state: StateFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(file, GGMLQuantizationType.Q8_0)
    (tmp_path / "LICENSE").write_text("free")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    known = replace(PACKAGED["smollm2-135m"], file_sha256=digest)
    monkeypatch.setitem(PACKAGED, "smollm2-135m", known)
    monkeypatch.setattr(packaged_models, "fetch", lambda model, folder: file)
    added = add("smollm2-135m", state)
    load_policy(added)
    assert (added / "LICENSE").read_text() == "free"
    assert json.loads((state.models / "smollm2-135m.json").read_text())["sha256"] == digest


def test_a_running_stack_knows_it_at_once(tmp_path: Path, state: StateFolder) -> None:
    added = add(write_policy(tmp_path / "mine"), state)
    assert not register("mine", added, state)
    up = Up(state.root)
    try:
        up.wait_until_ready()
        later = add(write_policy(tmp_path / "later"), state)
        assert register("later", later, state)
        models = up.get("/v1/models")
        assert isinstance(models, dict)
        assert {model["id"] for model in models["data"]} == {"tiny", "mine", "later"}
    finally:
        up.end()
    assert state.url() is None
