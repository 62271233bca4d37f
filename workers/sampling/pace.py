"""How the sampler gives way to a training on its machine: it computes for a share of the time, else rests.

A niceness would not do: a GPU knows none, and two processes that want the same processor share it as the
scheduler likes. Torch-free.
"""

import logging
import time
from collections.abc import Callable
from typing import Protocol

LOOK_SECONDS = 0.5
"""How often it looks whether a training is at work."""
SHORTEST_REST_SECONDS = 0.005
"""Shorter ones are collected: each costs the system a switch, and takes longer than it should."""
LONGEST_REST_SECONDS = 0.2
"""Requests stand still meanwhile; what is left of a long turn's rest follows after the next turns."""
LEFT_SECONDS = 1.0
"""So much rest may be left. What is more follows at once: turns that are all long would never pay for it."""
LONGEST_TURN_SECONDS = 5.0
"""What seems to take longer did not compute: the process was frozen, or Redis hung."""

logger = logging.getLogger(__name__)


class Stop(Protocol):
    """An event that ends a rest."""

    def wait(self, timeout: float) -> bool:
        """So many seconds, or until it is set."""


class Pace:
    """For one thread. share: of the time, in (0, 1]; 1 = never rest."""

    def __init__(
        self,
        share: float,
        is_training: Callable[[], bool],
        stop: Stop,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rest_a_second = (1 - share) / share
        self._is_training, self._stop, self._clock = is_training, stop, clock
        self._owed, self._ended = 0.0, clock()
        self._gives_way, self._next_look = False, 0.0
        self._has_warned = False

    def take(self, turn: Callable[[], None]) -> None:
        """Do a turn, then rest for what it owes to a training. Raises what the turn raises."""
        began = self._clock()
        turn()
        now = self._clock()
        # All time between two turns is rest: also what was waited for requests, or, as far as systems wake
        # late, slept too long.
        left = max(-SHORTEST_REST_SECONDS, self._owed - (began - self._ended))
        self._owed = left + min(now - began, LONGEST_TURN_SECONDS) * self._rest_a_second
        self._ended = now
        if self._owed < SHORTEST_REST_SECONDS:
            return
        if not self._has_to_give_way(now):
            self._owed = 0.0
            return
        self._stop.wait(min(self._owed, max(LONGEST_REST_SECONDS, self._owed - LEFT_SECONDS)))

    def _has_to_give_way(self, now: float) -> bool:
        if now >= self._next_look:
            self._next_look = now + LOOK_SECONDS
            self._gives_way = self._look()
        return self._gives_way

    def _look(self) -> bool:
        try:
            return self._is_training()
        except OSError as error:
            if not self._has_warned:
                self._has_warned = True
                said = "whether a training is at work is not known, so it is not given way to: %s: %s"
                logger.warning(said, type(error).__name__, error.strerror)
            return False
