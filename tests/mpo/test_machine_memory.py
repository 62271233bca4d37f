"""A machine's memory, from files as Linux writes them."""

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from mpo import machine_memory as memory
from mpo.machine_memory import group_limits, machine_memory

INSTALLED = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
GIB = 2**30
NO_LIMIT = "9223372036854771712"
"""What version 1 says where there is none."""

V1 = "12:cpu,cpuacct:/a\n11:memory:/a/b\n1:name=systemd:/a\n0::/a\n"
CASES: dict[str, tuple[str, Mapping[str, str], list[int]]] = {
    "version 2": ("0::/a/b\n", {"a/b/memory.max": "1073741824\n"}, [GIB]),
    "version 2, no limit": ("0::/a\n", {"a/memory.max": "max\n"}, []),
    "version 2, of a group above": ("0::/a/b\n", {"a/b/memory.max": "max", "a/memory.max": "7"}, [7]),
    "version 2, the root of a namespace": ("0::/\n", {"memory.max": "7"}, [7]),
    "version 2, the host's path": ("0::/docker/1f\n", {"memory.max": "7"}, [7]),
    "version 1": (V1, {"memory/a/b/memory.limit_in_bytes": "7"}, [7]),
    "version 1, several": (
        V1,
        {"memory/a/b/memory.limit_in_bytes": NO_LIMIT, "memory/memory.limit_in_bytes": "8"},
        [int(NO_LIMIT), 8],
    ),
    "version 1, other controllers' groups": ("3:cpu:/a\n", {"memory/a/memory.limit_in_bytes": "7"}, []),
    "no file of a limit": ("0::/a\n", {}, []),
    "no text": ("0::/a\n", {"a/memory.max": ""}, []),
}


def written(folder: Path, own: str, files: Mapping[str, str]) -> tuple[Path, Path]:
    """Where a process finds which groups it is in, and the groups."""
    groups = folder / "groups"
    for name, text in files.items():
        (groups / name).parent.mkdir(parents=True, exist_ok=True)
        (groups / name).write_text(text)
    (folder / "own").write_text(own)
    return folder / "own", groups


@pytest.mark.parametrize("case", CASES)
def test_limits_are_those_of_the_process_s_groups(tmp_path: Path, case: str) -> None:
    own, files, limits = CASES[case]
    assert list(group_limits(*written(tmp_path, own, files))) == limits


@pytest.mark.parametrize("limit", ["max", NO_LIMIT, str(INSTALLED + 1), "0"])
def test_a_limit_that_is_none_leaves_what_is_installed(tmp_path: Path, limit: str) -> None:
    assert machine_memory(*written(tmp_path, "0::/a\n", {"a/memory.max": limit})) == INSTALLED


def test_the_least_of_all_limits_counts(tmp_path: Path) -> None:
    files = {"a/b/memory.max": str(3 * 2**20), "a/memory.max": str(2**20), "memory.max": str(2**21)}
    assert machine_memory(*written(tmp_path, "0::/a/b\n", files)) == 2**20


def test_without_any_file_it_is_what_is_installed(tmp_path: Path) -> None:
    assert machine_memory(tmp_path / "own", tmp_path / "groups") == INSTALLED


def test_where_the_system_tells_nothing_it_is_not_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sysconf(name: str) -> int:
        raise ValueError(f"unrecognized configuration name: {name}")

    monkeypatch.setattr(memory.os, "sysconf", sysconf)
    assert machine_memory(tmp_path / "own", tmp_path / "groups") == 0


def test_this_machine_has_some() -> None:
    assert 0 < machine_memory() <= INSTALLED
