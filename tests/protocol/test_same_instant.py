"""Both inputs of a stage are published at the same instant: it is enqueued exactly once, every time."""

import os
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import psycopg
import pytest
from sqlalchemy import select

from core.database import open_session
from core.tables import Event, Run, StageRow
from tests.protocol.specs import Nodes
from tests.protocol.world import Worker, World

ROUNDS = int(os.environ.get("MPO_ROUNDS", "50"))
POINTS = 16
"""More than the statements and COMMITs between publication and the end of `apply_run`."""


def diamond(seed: int) -> Any:
    """Two trainings that are ready at once, and one that needs both; all rounds share the first stage."""

    def nodes(model: str, dataset: str) -> Nodes:
        reads = {"policy": "sft", "reference": "sft", "reward_model": "rm", "prompts": "rows"}
        return [
            {"name": "rows", "kind": "hold_out", "inputs": {"data": dataset}, "seed": 0},
            {"name": "sft", "kind": "sft", "inputs": {"policy": model, "data": "rows"}, "seed": seed},
            {
                "name": "rm",
                "kind": "reward_model",
                "inputs": {"backbone": model, "data": "rows"},
                "seed": seed,
            },
            {"name": "ppo", "kind": "ppo", "inputs": reads, "seed": seed},
        ]

    return nodes


@pytest.fixture
def world(admin: "psycopg.Connection[Any]") -> World:
    """All rounds' first stage is done."""
    made = World(admin)
    finish_first_stage(made)
    return made


def finish_first_stage(world: World) -> None:
    world.submit("ann", diamond(0), 0)
    end(world, "cpu")
    for worker in both_claimed(world):
        end_claimed(world, worker)
    end(world, "gpu")


def test_both_inputs_published_by_two_workers_at_once(
    world: World, record_property: Callable[[str, object], None]
) -> None:
    firsts: Counter[str] = Counter()
    for number in range(1, ROUNDS + 1):
        jobs = submit(world, number)
        at_once = Barrier(2)

        def publish(worker: Worker, at_once: Barrier = at_once) -> None:
            at_once.wait()
            end_claimed(world, worker)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(publish, both_claimed(world)))
        enqueued_once(jobs, number)
        firsts[first_of(jobs[0])] += 1
        end(world, "gpu")
    assert firsts.total() == ROUNDS
    record_property("rounds at the same instant, each enqueued once", ROUNDS)
    for stage, rounds in sorted(firsts.items()):
        record_property(f"of them with {stage} first", rounds)


@pytest.mark.parametrize("order", [1, -1], ids=["sft-stops", "rm-stops"])
def test_wherever_one_of_them_stops_while_the_other_publishes(world: World, order: int) -> None:
    for at in range(1, POINTS + 1):
        jobs = submit(world, at)
        first, second = both_claimed(world)[::order]
        world.faults.overlap(
            lambda worker=first: end_claimed(world, worker),  # type: ignore[misc]
            lambda worker=second: end_claimed(world, worker),  # type: ignore[misc]
            at,
        )
        enqueued_once(jobs, at)
        end(world, "gpu")


def submit(world: World, number: int) -> list[str]:
    """A job, and in every other round one more that waits for the same keys."""
    for _ in range(1 + number % 2):
        world.submit("ann", diamond(number), 0)
    return world.jobs[-1 - number % 2 :]


def both_claimed(world: World) -> list[Worker]:
    """A worker that does sft and one that does rm, in this order."""
    workers = world.workers[:2]
    for worker in workers:
        world.claim(worker, "gpu")
        world.apply(worker)
    return sorted(workers, key=lambda w: w.claimed.subject_id if w.claimed else "", reverse=True)


def end(world: World, slot: str) -> None:
    """Perform the one run that is queued."""
    worker = world.workers[2]
    world.claim(worker, slot)
    world.apply(worker)
    end_claimed(world, worker)


def end_claimed(world: World, worker: Worker) -> None:
    """Publish, and tell the jobs."""
    world.publish(worker)
    world.apply(worker)


def enqueued_once(jobs: list[str], seed: int) -> None:
    """Each job waits for the one run."""
    with open_session() as session:
        runs = list(session.scalars(select(Run.id).where(Run.kind == "ppo", Run.seed == seed)))
        of_jobs = select(StageRow.run_id).where(StageRow.job_id.in_(jobs), StageRow.name == "ppo")
        waits = list(session.scalars(of_jobs))
    assert len(runs) == 1, f"seed {seed}: enqueued {len(runs)} times"
    assert waits == runs * len(jobs), f"seed {seed}: {waits} wait"


def first_of(job_id: str) -> str:
    """The stage that the job heard of first."""
    ended = Event.job_id == job_id, Event.type == "stage.succeeded"
    with open_session() as session:
        return session.scalars(select(Event.stage).where(*ended).order_by(Event.id)).first() or ""
