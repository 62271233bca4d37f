"""Two jobs share stages; one is cancelled, paused, deleted at every state, and the other ends as if alone."""

from collections.abc import Callable
from itertools import product
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from core.database import open_session
from core.tables import Event, Job, Run, StageRow
from tests.protocol import specs
from tests.protocol.invariants import Invariants, Snapshot, all_ended
from tests.protocol.world import SLOTS, Worker, World

SHARED = "rm"


def waiting(world: World) -> Worker | None:
    """The stage before it is being done."""
    return work_until(world, "rows")


def queued(world: World) -> Worker | None:
    worker = work_until(world, SHARED)
    world.give_back(worker)
    world.apply(worker)
    return None


def running(world: World) -> Worker | None:
    return work_until(world, SHARED)


def claimed_and_unknown(world: World) -> Worker | None:
    return work_until(world, SHARED, tell=False)


def checkpointed(world: World) -> Worker | None:
    worker = work_until(world, SHARED)
    world.checkpoint(worker)
    return worker


def crashed(world: World) -> Worker | None:
    worker = work_until(world, SHARED)
    world.crash(worker)
    return None


def lost(world: World) -> Worker | None:
    """Its worker is frozen, and goes on when all is over."""
    worker = work_until(world, SHARED)
    world.lapse()
    return worker


def published_and_unknown(world: World) -> Worker | None:
    worker = work_until(world, SHARED)
    world.publish(worker)
    return None


def succeeded(world: World) -> Worker | None:
    worker = work_until(world, SHARED)
    world.publish(worker)
    world.apply(worker)
    return None


STATES = (
    waiting,
    queued,
    running,
    claimed_and_unknown,
    checkpointed,
    crashed,
    lost,
    published_and_unknown,
    succeeded,
)

Action = Callable[[World, str], None]


def cancel_and_delete(world: World, job_id: str) -> None:
    world.cancel(job_id)
    world.delete(job_id)


def cancel_and_die(world: World, job_id: str) -> None:
    world.cancel(job_id, dies=True)


def pause_and_die(world: World, job_id: str) -> None:
    world.pause(job_id, dies=True)


def pause_and_resume(world: World, job_id: str) -> None:
    world.pause(job_id)
    world.resume(job_id)


def resume_with_another_split(world: World, job_id: str) -> None:
    world.pause(job_id)
    world.resume(job_id, threshold=2.0)


ACTIONS: tuple[Action, ...] = (
    World.cancel,
    cancel_and_die,
    cancel_and_delete,
    World.pause,
    pause_and_die,
    pause_and_resume,
    resume_with_another_split,
)


def work_until(world: World, stage: str, *, tell: bool = True) -> Worker:
    """Perform runs until one of this stage is claimed; tell: the jobs know of it."""
    worker = world.workers[0]
    while True:
        for slot in SLOTS:
            if worker.claimed is None:
                world.claim(worker, slot)
        assert worker.claimed is not None
        found = worker.claimed.subject_id == stage
        if tell or not found:
            world.apply(worker)
        if found:
            return worker
        world.publish(worker)
        world.apply(worker)


@pytest.mark.parametrize("state", STATES, ids=lambda state: state.__name__)
def test_the_other_job_ends_as_if_alone(
    admin: "psycopg.Connection[Any]", state: Callable[[World], Worker | None]
) -> None:
    for action, owns_run in product(ACTIONS, (True, False)):
        world, history = World(admin), Invariants()
        for _ in range(2):
            world.submit("ann", specs.scored, 0)
        acted, other = world.jobs if owns_run else world.jobs[::-1]
        worker = state(world)
        action(world, acted)
        history.check(Snapshot.take(admin), world.jobs, world.cancelled)
        if worker is not None and state is not lost:
            # It learns at its next renewal whether its fence is over; if not, it ends its work.
            world.do(lambda world=world, worker=worker: (world.renew(worker), world.publish(worker)))
            world.do(lambda world=world, worker=worker: world.apply(worker))
        carry_on(world)
        case = f"{action.__name__} of the {'owner' if owns_run else 'waiting job'}"
        assert ended_well(other), f"{case}: the other one: {how(other)}"
        if state is lost and worker is not None:
            published = world.do(lambda world=world, worker=worker: world.publish(worker))
            assert not published, f"{case}: a late attempt has published"
        history.check(Snapshot.take(admin), world.jobs, world.cancelled)
        world.settle()
        all_ended(Snapshot.take(admin))
        assert acted in world.cancelled or ended_well(acted), f"{case}: {how(acted)}"


def carry_on(world: World) -> None:
    """Let workers and recovery run until nothing moves; nobody resumes what is paused."""
    world.lapse()
    for number in (0, 1, 0, 1):
        world.recover(number)
        world.clock.now += 20
    fresh = world.workers[1]
    while True:
        for slot in SLOTS:
            if fresh.claimed is None:
                world.claim(fresh, slot)
        if fresh.claimed is None:
            return
        world.apply(fresh)
        world.publish(fresh)
        world.apply(fresh)


def ended_well(job_id: str) -> bool:
    """Succeeded, told so once, and never held up by anybody's pause or cancellation."""
    with open_session() as session:
        types = list(session.scalars(select(Event.type).where(Event.job_id == job_id)))
        job = session.get_one(Job, job_id)
    return job.status == "succeeded" and types.count("job.succeeded") == 1


def how(job_id: str) -> list[tuple[str, str, str | None]]:
    """Its stages, and how their runs are."""
    with open_session() as session:
        of_job = select(StageRow.name, StageRow.status, Run.state).outerjoin(Run, Run.id == StageRow.run_id)
        rows = session.execute(of_job.where(StageRow.job_id == job_id).order_by(StageRow.position))
        return [(row.name, row.status, row.state) for row in rows]
