"""A job comes to wait for a run while that run ends: at every statement where one may stop for the other."""

from collections.abc import Callable
from typing import Any

import psycopg
import pytest

from tests.protocol import specs
from tests.protocol.invariants import Invariants, Snapshot, all_ended
from tests.protocol.world import Worker, World

Ending = Callable[[World, Worker], None]


def published(world: World, worker: Worker) -> None:
    world.publish_and_tell(worker)


def cancelled(world: World, worker: Worker) -> None:
    world.cancel(world.jobs[0])


def paused(world: World, worker: Worker) -> None:
    world.pause(world.jobs[0])


def failed(world: World, worker: Worker) -> None:
    world.fail(worker)
    world.apply(worker)


def given_back(world: World, worker: Worker) -> None:
    world.give_back(worker)
    world.apply(worker)


def joined_too(world: World, worker: Worker) -> None:
    """A third job, more urgent still."""
    world.submit("ann", specs.short, 0, priority=2)


RACES = [
    *((ending, 0) for ending in (published, cancelled, failed, joined_too)),
    # A job that is more urgent takes another lock, and then writes the run's row.
    *((ending, 1) for ending in (published, paused, given_back, joined_too)),
]


@pytest.mark.parametrize(("ending", "priority"), RACES, ids=lambda value: getattr(value, "__name__", None))
def test_a_job_that_comes_to_wait_misses_nothing(
    admin: "psycopg.Connection[Any]", ending: Ending, priority: int
) -> None:
    at, fits = 0, True
    while fits:
        at += 1
        world, worker = sft_claimed(admin)
        fits = world.faults.overlap(
            lambda world=world: world.submit("ann", specs.short, 0, priority=priority),  # type: ignore[misc]
            lambda world=world, worker=worker: ending(world, worker),  # type: ignore[misc]
            at,
        )
        ends_well(admin, world)
    assert at > 5


@pytest.mark.parametrize("ending", [published, cancelled], ids=lambda ending: ending.__name__)
def test_a_stage_that_comes_to_be_ready_misses_nothing(
    admin: "psycopg.Connection[Any]", ending: Ending
) -> None:
    """Its job has waited for the stage before; the run it then wants is another job's, and ends."""
    at, fits = 0, True
    while fits:
        at += 1
        world, _ = sft_claimed(admin)
        world.pause(world.jobs[0])
        world.submit("ann", specs.short, 0)
        other = world.workers[1]
        world.claim_and_tell(other, "gpu")
        fits = world.faults.overlap(
            lambda world=world: world.resume(world.jobs[0]),  # type: ignore[misc]
            lambda world=world, other=other: (  # type: ignore[misc]
                published(world, other) if ending is published else world.cancel(world.jobs[1])
            ),
            at,
        )
        ends_well(admin, world)
    assert at > 5


def sft_claimed(admin: "psycopg.Connection[Any]") -> tuple[World, Worker]:
    """A job whose second stage is being done."""
    world = World(admin)
    worker = world.workers[0]
    world.submit("ann", specs.short, 0)
    world.claim(worker, "cpu")
    world.publish_and_tell(worker)
    world.claim_and_tell(worker, "gpu")
    return world, worker


def ends_well(admin: "psycopg.Connection[Any]", world: World) -> None:
    """What must hold does, now and when all has ended; without recovery's help where nobody died."""
    history = Invariants()
    history.check(Snapshot.take(admin), world.jobs, world.cancelled)
    world.settle()
    now = Snapshot.take(admin)
    history.check(now, world.jobs, world.cancelled)
    all_ended(now)
