"""Replies that are sent while tokens are drawn: in order, once, and kept where they could not be sent."""

from collections.abc import Sequence
from threading import Event

import pytest

from core.sampling import ErrorReply
from workers.sampling.mailbox import Letter, Mail
from workers.sampling.post import Post

PATIENCE_SECONDS = 30.0


class Gate:
    """Where letters go; refuses as often as it is told to, and holds a thread until it may go on."""

    def __init__(self, refusals: int = 0) -> None:
        self.sent: list[Letter] = []
        self.refusals, self.may_go_on = refusals, Event()

    def send(self, letters: Sequence[Letter]) -> None:
        """All or none."""
        assert self.may_go_on.wait(PATIENCE_SECONDS)
        if self.refusals:
            self.refusals -= 1
            raise ConnectionError
        self.sent += letters

    def drop(self, mail: Mail) -> None:
        """Nothing."""

    def withdrawn(self, mails: Sequence[Mail]) -> list[Mail]:
        """None."""
        return []


def letter(number: int) -> Letter:
    mail: Mail = object()  # type: ignore[assignment]
    return Letter(mail, ErrorReply(code=str(number), status=500, detail=""))


def test_whoever_adds_does_not_wait_for_what_is_being_sent() -> None:
    gate, letters = Gate(), [letter(number) for number in range(3)]
    post = Post(gate)
    for each in letters:
        post.add(each)
        post.send(wait=False)
    assert not gate.sent
    gate.may_go_on.set()
    post.send(wait=True)
    assert gate.sent == letters
    assert post.is_empty


def test_what_could_not_be_sent_is_kept_and_keeps_its_place() -> None:
    gate, letters = Gate(refusals=1), [letter(0), letter(1)]
    gate.may_go_on.set()
    post = Post(gate)
    post.add(letters[0])
    with pytest.raises(ConnectionError):
        post.send(wait=True)
    assert not post.is_empty
    post.add(letters[1])
    post.send(wait=True)
    assert gate.sent == letters
