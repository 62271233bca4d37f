"""`python -m embedded.unprivileged PROGRAM ARGUMENT…`, as root: becomes PROGRAM without being root.

Postgres refuses root. The account that it then runs as could enter neither a state folder nor an environment
that lies below a folder of root's, and opening those folders to everyone is no business of ours: so that one
right of root's, passing by file permissions, is kept. Linux only; elsewhere the program runs without it.
"""

import ctypes
import os
import pwd
import sys
from pathlib import Path

ACCOUNT = "nobody"
# From linux/capability.h and linux/prctl.h.
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_DAC_OVERRIDE = 1
_PR_SET_KEEPCAPS = 8
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2


def command(program: Path, *arguments: str) -> tuple[str, ...]:
    """How to start the program: as it is, or by way of this module when root asks."""
    if os.geteuid() != 0:
        return (str(program), *arguments)
    return (sys.executable, "-m", "embedded.unprivileged", str(program), *arguments)


def own(folder: Path) -> None:
    """Gives the folder and what is in it to the account that `command` runs under."""
    if os.geteuid() != 0:
        return
    account = pwd.getpwnam(ACCOUNT)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def main(arguments: list[str]) -> None:
    account = pwd.getpwnam(ACCOUNT)
    on_linux = sys.platform == "linux"
    libc = ctypes.CDLL(None, use_errno=True)
    if on_linux:
        _check(libc.prctl(_PR_SET_KEEPCAPS, 1, 0, 0, 0))
    os.setgroups([])
    os.setgid(account.pw_gid)
    os.setuid(account.pw_uid)
    if on_linux:
        _keep_passing_by_permissions(libc)
    os.execv(arguments[0], arguments)  # noqa: S606  # the arguments are embedded.postgres's own


def _keep_passing_by_permissions(libc: ctypes.CDLL) -> None:
    mask = 1 << _CAP_DAC_OVERRIDE
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    # Effective, permitted, inheritable of the first 32 capabilities, then of the rest.
    sets = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    try:
        _check(libc.capset(header, sets))
        _check(libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE, 0, 0))
    except PermissionError:
        # A container may withhold it from root itself; folders open to all work even so.
        print("cannot keep CAP_DAC_OVERRIDE", file=sys.stderr)


def _check(result: int) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


if __name__ == "__main__":
    main(sys.argv[1:])
