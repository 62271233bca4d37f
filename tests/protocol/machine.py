"""Clients, workers, recoveries and faults in any order; after each step the invariants hold."""

from collections.abc import Callable
from typing import Any, ClassVar

import psycopg
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.protocol import specs
from tests.protocol.interruptions import Interruption
from tests.protocol.invariants import Invariants, Snapshot, all_ended
from tests.protocol.world import OWNERS, SLOTS, Worker, World

MOST_JOBS = 4

indices = st.integers(0, 2)
points = st.integers(1, 20)
seldom = st.integers(0, 5).map(lambda n: n == 0)
specs_ = st.sampled_from(specs.ALL)
owners = st.sampled_from([OWNERS[0], OWNERS[0], OWNERS[1]])

Work = Callable[[], None]


class Protocol(RuleBasedStateMachine):
    """One sequence: a fresh world, some twenty steps, then everything is let run to its end."""

    admin: ClassVar["psycopg.Connection[Any]"]
    sequences: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        self.world = World(self.admin)
        self.history = Invariants()

    @initialize(spec=specs_, twins=st.booleans(), done=st.integers(0, 3))
    def begin(self, spec: specs.Spec, twins: bool, done: int) -> None:
        """One job or two that share all, some stages done, and one claimed."""
        world = self.world
        for _ in range(1 + twins):
            world.submit(OWNERS[0], spec, 0)
        for left in range(done, -1, -1):
            for slot in SLOTS:
                world.claim_and_tell(world.workers[0], slot)
            if left and world.workers[0].claimed:
                world.publish_and_tell(world.workers[0])

    @precondition(lambda self: len(self.world.jobs) < MOST_JOBS)
    @rule(owner=owners, spec=specs_, dataset=indices, priority=indices, pauses=st.booleans())
    def submit(self, owner: str, spec: specs.Spec, dataset: int, priority: int, pauses: bool) -> None:
        """Perhaps for stages that another job has under way, perhaps more urgently."""
        self._do(self._submission(owner, spec, dataset, priority, pauses))

    @precondition(lambda self: len(self.world.jobs) < MOST_JOBS)
    @rule(job=indices)
    def submit_on_a_trained_model(self, job: int) -> None:
        """Refused where it is not trained yet."""
        self._do(lambda: self.world.submit_on(self._job(job)))

    @precondition(lambda self: sum(map(len, self.world.datasets.values())) < 4)
    @rule(owner=owners, number=indices)
    def upload(self, owner: str, number: int) -> None:
        """Jobs may wait for it before it is validated."""
        self._do(lambda: self.world.upload(owner, number))

    @rule(job=indices, change=st.integers(0, 11), dies=seldom)
    def change(self, job: int, change: int, dies: bool) -> None:
        """What a person does."""
        self._do(self._change(job, change, dies))

    @rule(worker=indices, slot=st.sampled_from(SLOTS), quietly=seldom)
    def claim(self, worker: int, slot: str, quietly: bool) -> None:
        """quietly: the worker stops between the claim and telling the jobs."""
        chosen, world = self.world.workers[worker], self.world
        self._do(lambda: (world.claim if quietly else world.claim_and_tell)(chosen, slot))

    @rule(worker=indices, step=st.integers(0, 19), tells=st.integers(0, 3))
    def work(self, worker: int, step: int, tells: int) -> None:
        """The next thing that a worker does, whether its fence is over or not; tells: it lives to tell."""
        chosen = self._worker(worker)
        if chosen is None:
            return
        self._do(self._step(chosen, step))
        if chosen.claimed is not None and chosen.ended and tells:
            self._do(lambda: self.world.apply(chosen))

    @rule(worker=indices)
    def die(self, worker: int) -> None:
        """Between any two transactions."""
        self.world.die(self.world.workers[worker])

    @rule(number=st.integers(0, 1), seconds=st.sampled_from([0.0, 3.0, 20.0]))
    def recover(self, number: int, seconds: float) -> None:
        """A pass, some time after whatever came before."""
        self.world.clock.now += seconds
        self._do(lambda: self.world.recover(number))

    @rule(worker=indices, slot=st.sampled_from(SLOTS), other=indices)
    def freeze(self, worker: int, slot: str, other: int) -> None:
        """A worker stands still past its lease; another one may take the run over. The first will go on."""
        world = self.world
        world.lapse()
        for _ in range(2):
            world.clock.now += 16.0
            self._do(lambda: world.recover(0))
        self._do(lambda: world.claim_and_tell(world.workers[other], slot))

    @rule()
    def lapse(self) -> None:
        """All workers were frozen, or the database's clock has jumped."""
        self.world.lapse()

    @rule(seconds=st.sampled_from([1.0, 60.0]))
    def outage(self, seconds: float) -> None:
        """The database was away for longer than leases last."""
        self.world.outage(seconds)

    @rule(seconds=st.sampled_from([16.0, 3600.0]))
    def standstill(self, seconds: float) -> None:
        """All stood still for longer than leases last, and nobody was told."""
        self.world.standstill(seconds)

    @rule(at=points, work=st.integers(0, 9), who=indices, how=st.integers(0, 11), answer=st.booleans())
    def cut(self, at: int, work: int, who: int, how: int, answer: bool) -> None:
        """The connection is lost in the middle of something; answer: what is lost is the answer to COMMIT."""
        faults = self.world.faults
        action = faults.lose_answer if answer else faults.lose_connection
        self.world.do(self._anything(work, who, how), Interruption(at, action))

    @rule(
        first=st.integers(0, 9),
        second=st.integers(0, 9),
        who=st.tuples(indices, indices),
        how=st.tuples(st.integers(0, 11), st.integers(0, 11)),
        at=points,
    )
    def overlap(self, first: int, second: int, who: tuple[int, int], how: tuple[int, int], at: int) -> None:
        """Two things at once: one is stopped at a point while the other is done."""
        if first >= 6 and second >= 6 and self._worker(who[0]) is self._worker(who[1]):
            return  # a worker does one thing at a time
        self._race(self._anything(first, who[0], how[0]), self._anything(second, who[1], how[1]), at)

    @precondition(lambda self: len(self.world.jobs) < MOST_JOBS and self._worker(0))
    @rule(spec=specs_, urgent=st.booleans(), who=indices, at=st.integers(8, 30), ends=st.integers(0, 19))
    def join(self, spec: specs.Spec, urgent: bool, who: int, at: int, ends: int) -> None:
        """A job comes to wait for a run at the instant that the run ends, or is taken away."""
        worker, world = self._worker(who), self.world
        assert worker is not None
        ending = self._change(who, ends, dies=False) if ends < 5 else lambda: world.publish_and_tell(worker)
        self._race(self._submission(OWNERS[0], spec, 0, int(urgent)), ending, at)

    @precondition(lambda self: self._worker(0) is not self._worker(1))
    @rule(at=st.integers(1, 16), tells=st.booleans())
    def end_together(self, at: int, tells: bool) -> None:
        """Two workers publish at once; tells: or tell the jobs once more."""
        one, other = self._worker(0), self._worker(1)
        assert one is not None
        assert other is not None
        world = self.world
        work = world.apply if tells else world.publish_and_tell
        self._race(lambda: work(one), lambda: world.publish_and_tell(other), at)

    def _race(self, one: Work, other: Work, at: int) -> None:
        self.world.faults.overlap(lambda: self._do(one), lambda: self._do(other), at)
        # What was queued meanwhile began from a checkpoint that may have been replaced meanwhile.
        self.history.before = None

    @invariant()
    def holds(self) -> None:
        """See `tests.protocol.invariants`."""
        if self.world.jobs:
            now = Snapshot.take(self.admin)
            self.history.check(now, self.world.jobs, self.world.cancelled)

    def teardown(self) -> None:
        """No more faults: every job ends, those too that were paused."""
        type(self).sequences += 1
        self.world.settle()
        now = Snapshot.take(self.admin)
        self.history.check(now, self.world.jobs, self.world.cancelled)
        all_ended(now)

    def _do(self, work: Work) -> None:
        self.world.do(work)

    def _job(self, number: int) -> str:
        return self.world.jobs[number % len(self.world.jobs)]

    def _worker(self, number: int) -> Worker | None:
        """One that has something to do."""
        busy = [worker for worker in self.world.workers if worker.claimed is not None]
        return busy[number % len(busy)] if busy else None

    def _submission(
        self, owner: str, spec: specs.Spec, dataset: int, priority: int = 0, pauses: bool = False
    ) -> Work:
        after = ["parts"] if pauses and spec is not specs.short else []
        return lambda: self.world.submit(owner, spec, dataset, priority=priority, pause_after=after)

    def _change(self, job: int, change: int, dies: bool) -> Work:
        world, job_id = self.world, self._job(job)
        if change < 2:
            return lambda: world.cancel(job_id, dies=dies)
        if change < 5:
            return lambda: world.pause(job_id, dies=dies)
        if change < 8:
            return lambda: world.resume(job_id, dies=dies)
        if change < 10:
            return lambda: world.resume(job_id, threshold=float(change), dies=dies)
        return lambda: world.delete(job_id)

    def _step(self, worker: Worker, step: int) -> Work:
        world = self.world
        if step < 9:
            return lambda: world.publish(worker, weak=step == 0)
        steps: list[Callable[[Worker], None]] = [world.renew, world.checkpoint, world.checkpoint, world.apply]
        steps += [world.crash, world.crash, world.give_back, world.fail, lambda w: world.progress(w, 3)]
        return lambda: steps[(step - 9) % len(steps)](worker)

    def _anything(self, work: int, who: int, how: int) -> Work:
        """One of all that can be done; nothing where nobody can do it."""
        world = self.world
        if work < 2 and len(world.jobs) < MOST_JOBS:
            return self._submission(OWNERS[0], specs.ALL[how % 3], how, how % 2)
        if work < 4:
            return self._change(who, how, dies=False)
        if work == 4:
            return lambda: world.recover(how % 2)
        if work == 5:
            free = next((w for w in world.workers if w.claimed is None), None)
            return (lambda: world.claim(free, SLOTS[how % 2])) if free else (lambda: None)
        worker = self._worker(who)
        if worker is None:
            return lambda: None
        if work < 8:
            return lambda: world.publish_and_tell(worker)
        return self._step(worker, how + 5)
