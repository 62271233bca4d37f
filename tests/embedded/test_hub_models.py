import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from embedded.errors import ModelNotAdded
from embedded.hub_models import download
from tests.embedded.local_hub import COMMIT, hub


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """The hub's: one with everything, one with pickles alone, one that asks for consent."""
    files = {
        "own/good": [
            "config.json",
            "model.safetensors",
            "tokenizer.json",
            "LICENSE",
            "code.py",
            "pytorch_model.bin",
            "onnx/model.safetensors",
            "consolidated.safetensors",
        ],
        "own/pickled": ["config.json", "pytorch_model.bin"],
        "own/gated": [".gated"],
    }
    for name, paths in files.items():
        for path in paths:
            file = tmp_path / "hub" / name / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{name} {path}")
    return tmp_path / "hub"


@pytest.fixture
def served(models: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[str]]]:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with hub(models) as found:
        yield found


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


@pytest.mark.parametrize("revision", ["", "@v1", f"@{COMMIT}"])
def test_weights_and_tokenizer_come_and_no_code_nor_pickles(
    served: tuple[str, list[str]], target: Path, revision: str
) -> None:
    url, asked = served
    assert download(f"hf:own/good{revision}", target, endpoint=url) == COMMIT
    came = {path.name for path in target.iterdir() if path.is_file()}
    assert came == {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}
    assert (target / "model.safetensors").read_text() == "own/good model.safetensors"
    assert not [path for path in asked if path.endswith((".py", ".bin")) or "onnx" in path]


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("hf:own/pickled", "own/pickled has no safetensors, and pickled weights are never loaded"),
        ("hf:own/none", "the hub has no model own/none, or it is private"),
        ("hf:own/good@v9", "own/good has no revision v9"),
        ("hf:own/gated", "own/gated is gated"),
        ("hf:a/b/c", "'a/b/c' is no name of a model"),
    ],
)
def test_what_is_wrong_is_one_line(
    served: tuple[str, list[str]], target: Path, source: str, said: str
) -> None:
    with pytest.raises(ModelNotAdded, match=r"\A[^\n]+\Z") as refused:
        download(source, target, endpoint=served[0])
    assert said in str(refused.value)


def test_pickled_weights_are_not_even_fetched(served: tuple[str, list[str]], target: Path) -> None:
    with pytest.raises(ModelNotAdded):
        download("hf:own/pickled", target, endpoint=served[0])
    assert not [path for path in served[1] if path.endswith(".bin")]


def test_no_network_is_said(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    with pytest.raises(ModelNotAdded, match="the hub cannot be reached"):
        download("hf:own/good", target, endpoint=f"http://127.0.0.1:{port}")


def test_a_hub_that_was_switched_off_is_said(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotAdded, match="switched off by HF_HUB_OFFLINE"):
        download("hf:own/good", target)
