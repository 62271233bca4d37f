"""How much memory this machine gives to its processes, as far as the system tells. Torch-free."""

import os
from collections.abc import Iterator
from pathlib import Path

OWN_GROUPS = Path("/proc/self/cgroup")
GROUPS = Path("/sys/fs/cgroup")
"""Linux: the control groups that this process is in, and where all of them lie."""


def machine_memory(own_groups: Path = OWN_GROUPS, groups: Path = GROUPS) -> int:
    """Bytes: all that is installed, or what the process's control groups allow where that is less; 0 where
    nobody tells.

    What other processes hold of it counts as free: they come and go while a job waits.
    """
    told = (_installed(), *group_limits(own_groups, groups))
    return min((count for count in told if count > 0), default=0)


def group_limits(own_groups: Path, groups: Path) -> Iterator[int]:
    """Bytes that each of the process's control groups allows, from its own up to the root, of either version.

    One that allows all says so by a word or by a number beyond any machine: the word is left out here.
    """
    for line in _text(own_groups).splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            yield from _limits(groups, path, "memory.max")
        elif "memory" in controllers.split(","):
            yield from _limits(groups / "memory", path, "memory.limit_in_bytes")


def _limits(root: Path, path: str, file: str) -> Iterator[int]:
    # In a container the path may be the host's, of which only the root is to be seen here.
    group = Path(path.lstrip("/"))
    for each in (group, *group.parents):
        limit = _text(root / each / file).strip()
        if limit.isdigit():
            yield int(limit)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:  # no Linux, another version, or a group that is not shown here
        return ""


def _installed() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):  # the system knows no such name
        return 0
