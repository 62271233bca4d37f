"""SIGTERM and SIGINT, once or often, ask a process to stop."""

import contextlib
import os
import signal


class StopSignal:
    """Make it on the main thread, before anything takes long; then wait for it there.

    A signal writes to a pipe, from whichever thread it reaches, and takes no lock. With an Event one that
    reaches another thread would not wake the main one, and a second one, while the main thread holds the
    Event's lock, would make it wait for itself for ever.
    """

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._writer, False)
        signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            # Python writes to the pipe for those alone that have a handler of its own.
            signal.signal(number, lambda *_: None)

    def ask(self) -> None:
        """As a signal does; from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._writer, b".")

    def wait(self) -> None:
        """Until it has been asked, perhaps long ago."""
        os.read(self._reader, 1)
