"""Replies on their way: a thread of their own sends them while the next tokens are drawn."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from typing import Protocol

from workers.sampling.mailbox import Letter, Mail


class Outbox(Protocol):
    """Where replies go; for several threads."""

    def send(self, letters: Sequence[Letter]) -> None:
        """All of them or none; whoever is answered whole is forgotten."""

    def drop(self, mail: Mail) -> None:
        """No reply: nobody waits for it."""

    def withdrawn(self, mails: Sequence[Mail]) -> list[Mail]:
        """Those that whoever asked has taken back."""


class Post:
    """What is to be sent, in order. What could not be sent is kept, and tried again."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="replies")
        self._letters: list[Letter] = []
        self._under_way: tuple[Future[None], int] | None = None

    @property
    def is_empty(self) -> bool:
        """Whether all has been sent."""
        return not self._letters

    def add(self, letter: Letter) -> None:
        """One more, for the next time that something is sent."""
        self._letters.append(letter)

    def send(self, *, wait: bool) -> None:
        """Begin to send what there is, unless something is being sent; wait: until all of it has been.

        Raises what kept the letters before from being sent; then nothing of them is lost.
        """
        while self._letters:
            if self._under_way is None:
                letters = list(self._letters)
                self._under_way = self._thread.submit(self._outbox.send, letters), len(letters)
            sending, count = self._under_way
            if not wait and not sending.done():
                return
            wait_for([sending])
            self._under_way = None
            sending.result()
            del self._letters[:count]

    def close(self) -> None:
        """Send nothing more."""
        self._thread.shutdown(wait=False, cancel_futures=True)
