"""The share of the time that the sampler takes, by a clock that turns and rests move."""

import logging
from collections.abc import Callable

import pytest

from workers.sampling.pace import LONGEST_TURN_SECONDS, LOOK_SECONDS, Pace


class Time:
    """A clock, and the stop whose rests it records. late: how much longer than asked each takes."""

    def __init__(self, late: float = 0.0) -> None:
        self.now, self.late, self.rests = 100.0, late, list[float]()

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float) -> bool:
        self.rests.append(timeout)
        self.now += timeout + self.late
        return False

    def turn(self, seconds: float) -> Callable[[], None]:
        def passes() -> None:
            self.now += seconds

        return passes


def pace(time: Time, share: float, is_training: Callable[[], bool] = lambda: True) -> Pace:
    return Pace(share, is_training, time, time)


def share_taken(time: Time, share: float, turn_seconds: float, turns: int) -> float:
    began, paced = time.now, pace(time, share)
    for _ in range(turns):
        paced.take(time.turn(turn_seconds))
    return turns * turn_seconds / (time.now - began)


@pytest.mark.parametrize("late", [0.0, 0.003])
@pytest.mark.parametrize("turn_seconds", [0.0004, 0.02, 0.15, 0.9])
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_the_share_is_kept_whatever_a_turn_takes(share: float, turn_seconds: float, late: float) -> None:
    assert share_taken(Time(late), share, turn_seconds, 500) == pytest.approx(share, rel=0.02)


def test_a_whole_share_never_rests() -> None:
    time = Time()
    assert share_taken(time, 1.0, 0.02, 100) == pytest.approx(1.0)
    assert time.rests == []


def test_without_a_training_there_is_no_rest() -> None:
    time = Time()
    paced = pace(time, 0.1, lambda: False)
    for _ in range(100):
        paced.take(time.turn(0.02))
    assert time.rests == []


def test_rests_of_short_turns_are_collected() -> None:
    time = Time()
    share_taken(time, 0.5, 0.001, 100)
    assert time.rests == pytest.approx([0.005] * 20)


def test_the_rest_of_a_long_turn_comes_in_parts() -> None:
    time = Time()
    paced = pace(time, 0.5)
    for seconds in (0.5, 0.01, 0.01, 0.01, 0.01):
        paced.take(time.turn(seconds))
    assert time.rests == pytest.approx([0.2, 0.2, 0.12, 0.01, 0.01])


def test_time_without_requests_is_rest() -> None:
    time = Time()
    paced = pace(time, 0.5)
    paced.take(time.turn(0.5))
    time.now += 10.0
    paced.take(time.turn(0.02))
    assert time.rests == pytest.approx([0.2, 0.015])


def test_a_process_that_was_frozen_does_not_rest_for_it() -> None:
    time = Time()
    pace(time, 0.5).take(time.turn(3600.0))
    assert sum(time.rests) <= LONGEST_TURN_SECONDS


def test_a_training_is_looked_for_now_and_then_and_its_end_ends_the_rests() -> None:
    time, asked, trains = Time(), list[float](), True

    def is_training() -> bool:
        asked.append(time.now)
        return trains

    paced = pace(time, 0.5, is_training)
    for _ in range(50):
        paced.take(time.turn(0.02))
    assert len(asked) == pytest.approx(50 * 0.04 / LOOK_SECONDS, abs=1)
    trains, ended = False, time.now
    for _ in range(100):
        paced.take(time.turn(0.02))
    assert time.now - ended < 100 * 0.02 + LOOK_SECONDS


def test_where_trainings_cannot_be_seen_it_does_not_rest_and_says_so_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def cannot_tell() -> bool:
        raise OSError(37, "No locks available")

    time = Time()
    paced = pace(time, 0.5, cannot_tell)
    with caplog.at_level(logging.WARNING):
        for _ in range(200):
            paced.take(time.turn(0.02))
    assert time.rests == []
    assert caplog.text.count("No locks available") == 1


def test_a_turn_that_fails_owes_nothing() -> None:
    time = Time()

    def fails() -> None:
        time.now += 0.5
        raise ConnectionError

    paced = pace(time, 0.5)
    with pytest.raises(ConnectionError):
        paced.take(fails)
    paced.take(time.turn(0.02))
    assert time.rests == pytest.approx([0.015])
