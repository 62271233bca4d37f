"""`python -m embedded.watchman STATE`: stops a stack whose `mpo up` was killed, in the same order.

Holds the reading end of a pipe of which `mpo up` alone has the other: its end says that it is gone.
"""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from embedded.services import inherited_environment
from embedded.state import Recorded, StateFolder


@contextmanager
def watched(state: StateFolder) -> Iterator[None]:
    """Within the block a watchman waits for this process's death. The folder's lock must be held."""
    command = [sys.executable, "-m", "embedded.watchman", str(state.root)]
    with (
        state.log("watchman").open("ab") as log,
        # A session of its own: it must outlive whatever ends this process's.
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=state.scratch,
            env=inherited_environment(), start_new_session=True,
        ),
    ):  # fmt: skip
        yield


def stop_in_reverse(left: list[Recorded]) -> None:
    """Last started, first stopped: workers and API still use the servers below them."""
    for each in reversed(left):
        each.process.send(each.stop_signal)
        if not each.process.wait(each.grace_seconds):
            each.process.kill_group()
            each.process.wait(each.grace_seconds)


def main(root: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    state = StateFolder(root)
    up = state.holder()
    sys.stdin.buffer.read()
    left = state.recorded()
    # Another `mpo up` that has the folder by now stops them itself, and then records its own.
    if state.holder() == up:
        stop_in_reverse([each for each in left if each.process.is_running()])


if __name__ == "__main__":
    main(Path(sys.argv[1]))
