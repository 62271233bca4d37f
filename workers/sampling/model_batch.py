"""The requests to sample from models of one network: their responses are drawn together, come and go."""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from mpo.continuous_batch import ContinuousBatch, DrawnToken, Draws
from workers.sampling.answering import Answering
from workers.sampling.loading import LoadedModel
from workers.sampling.mailbox import Mail

MOST_ROWS = 64
"""Responses that are drawn together; the others wait for their places."""

JOIN_TOGETHER = 8
"""So many join at once; fewer wait, of 32 under way up to four tokens for example."""


@dataclass(eq=False)
class Asked:
    """A request, whose responses it wants, and how far it is."""

    mail: Mail
    answering: Answering
    model: LoadedModel


class ModelBatch:
    """Requests under way with one network: the base's, or an adapter's of it."""

    def __init__(self, model: LoadedModel, pad_id: int) -> None:
        """model: any of the network's. Raises UnusableModel where no responses can be drawn from it."""
        self.asked: list[Asked] = []
        self._batch = ContinuousBatch(model.model, pad_id, model.mixture)
        self._waiting: deque[tuple[Asked, int]] = deque()
        self._live: dict[int, tuple[Asked, int]] = {}
        self._next_name, self._turns_waited = 0, 0

    @property
    def digests(self) -> set[str]:
        """Of the models that are asked."""
        return {asked.model.digest for asked in self.asked}

    def join(self, asked: Asked) -> None:
        """A request whose responses are to be drawn."""
        self.asked.append(asked)
        self._waiting.extend((asked, number) for number in asked.answering.to_draw)

    def turn(self) -> list[Asked]:
        """One more token of every response that has a place; returns the requests that are complete."""
        joining = [self._waiting.popleft() for _ in range(self._may_join())]
        if joining:
            self._add(joining)
        elif self._batch:
            self._take(self._batch.step())
        complete = [asked for asked in self.asked if asked.answering.has_ended]
        self.asked = [asked for asked in self.asked if not asked.answering.has_ended]
        return complete

    def _may_join(self) -> int:
        """How many of those that wait join now: prompts that are read together cost less than one by one, so
        while many responses are drawn, the first that comes waits a few tokens for others."""
        count = min(MOST_ROWS - len(self._batch), len(self._waiting))
        self._turns_waited = self._turns_waited + 1 if count else 0
        if count >= JOIN_TOGETHER or self._turns_waited * JOIN_TOGETHER > len(self._batch) or not self._batch:
            self._turns_waited = 0
            return count
        return 0

    def leave(self, gone: Iterable[Asked]) -> None:
        """Requests whose answers are of no use any more."""
        left = set(gone)
        self._batch.remove([name for name, (asked, _) in self._live.items() if asked in left])
        self._live = {name: row for name, row in self._live.items() if row[0] not in left}
        self._waiting = deque(row for row in self._waiting if row[0] not in left)
        self.asked = [asked for asked in self.asked if asked not in left]

    def _add(self, joining: list[tuple[Asked, int]]) -> None:
        """Model by model: what is known of a prompt's beginning is one model's."""
        for digest in dict.fromkeys(asked.model.digest for asked, _ in joining):
            of_model = [(asked, number) for asked, number in joining if asked.model.digest == digest]
            rows = [self._start(asked, number) for asked, number in of_model]
            self._take(self._batch.add(rows, of_model[0][0].model.voice))

    def _start(self, asked: Asked, number: int) -> tuple[int, list[int], Draws]:
        name, self._next_name = self._next_name, self._next_name + 1
        self._live[name] = asked, number
        return name, *asked.answering.start(number)

    def _take(self, tokens: dict[int, DrawnToken]) -> None:
        ended = []
        for name, token in tokens.items():
            asked, number = self._live[name]
            if asked.answering.take(number, token):
                ended.append(name)
                del self._live[name]
        self._batch.remove(ended)
