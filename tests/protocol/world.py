"""The service in one process: workers, recoveries, clients, doing what the real ones do, call by call."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psycopg
from sqlalchemy import select
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from app.datasets.service import accept_content
from app.jobs import changes
from app.jobs.creation import create_job
from app.jobs.schemas import CreateJob, ResumeJob
from app.jobs.submissions import NotTogether, Submission, create_together
from core import queue
from core.aftermath import apply_run
from core.database import open_session, open_transaction
from core.errors import ServiceError
from core.ids import new_id
from core.settings import settings
from core.storage import StoredFile
from core.tables import BaseModelRow, Dataset, Job
from core.work_items import ClaimedRun, NewArtifact
from mpo.plan import OUTPUTS
from tests.protocol import specs
from tests.protocol.interruptions import Faults, Interruption, interrupted
from workers.child_protocol import Progress
from workers.lease import LeaseKeeper
from workers.recovery import Recovery

OWNERS = ("ann", "bob")
SLOTS = ("cpu", "gpu")
ROWS = "datasets/rows.parquet"
MANY_ROWS = 1_000_000
"""Rows that a dataset says it has: so many are not read at submit."""
DIED = {"code": "crashed", "message": "The process died three times", "output": ""}
REFUSED = {"code": "training_diverged", "message": "loss is NaN", "output": None}
EMPTY = (
    "DELETE FROM job_inputs; DELETE FROM artifact_references; DELETE FROM artifacts; DELETE FROM metrics; "
    "DELETE FROM jobs; DELETE FROM runs; DELETE FROM datasets; DELETE FROM models; DELETE FROM workers"
)


class Clock:
    """The clocks of every worker: a standstill moves the calendar's alone, all else the monotonic one."""

    now = 1_000.0
    calendar = 1_000.0

    def monotonic(self) -> float:
        """Seconds."""
        return self.now

    def time(self) -> float:
        """Seconds."""
        return self.calendar


CLOCK = Clock()


@dataclass
class Worker:
    """A slot of a worker process: the run that it believes to hold."""

    name: str
    claimed: ClaimedRun | None = None
    keeper: LeaseKeeper | None = None
    ended: bool = False
    """Whether its work is published, failed or given back, and only `apply_run` is left to do."""


@dataclass
class World:
    """All that acts; what it knows beyond the database is what clients were told."""

    admin: "psycopg.Connection[Any]"
    workers: list[Worker] = field(default_factory=lambda: [Worker(f"wrk_{n}") for n in range(3)])
    jobs: list[str] = field(default_factory=list)
    cancelled: set[str] = field(default_factory=set)
    deleted: set[str] = field(default_factory=set)
    datasets: dict[str, list[str]] = field(default_factory=dict)
    checkpoints: int = 0
    renewable_since: float = 0.0

    def __post_init__(self) -> None:
        self.clock = CLOCK
        self.admin.execute(EMPTY)
        self.faults = Faults(self.admin)
        self.recoveries = [Recovery(f"wrk_{n}", "cpu", 1) for n in range(2)]
        with open_transaction() as tx:
            values = {"kind": "policy", "path": "/models/tiny", "sha256": "1" * 64, "context_tokens": 256}
            tx.session.add(BaseModelRow(name="tiny", has_chat_template=True, owner="ann", **values))
            for owner in OWNERS:
                ready = {"status": "ready", "rows": MANY_ROWS, "rows_location": ROWS, "rows_sha256": "e" * 64}
                dataset = _dataset(owner, sha256="d" * 64, **ready)
                tx.session.add(dataset)
                self.datasets[owner] = [dataset.id]

    def do(self, work: Callable[[], None], interruption: Interruption | None = None) -> bool:
        """Whether the work was done; not where it was refused, or the interruption cost it its connection."""
        try:
            with interrupted(interruption):
                work()
        except ServiceError:
            return False
        except (OperationalError, InterfaceError):
            if interruption is None or not interruption.fired:
                raise
            return False
        return True

    # What clients do.

    def upload(self, owner: str, number: int) -> None:
        """A dataset whose validation is queued."""
        dataset = _dataset(owner)
        with open_transaction() as tx:
            tx.session.add(dataset)
            tx.session.flush()
            accept_content(tx, owner, dataset.id, StoredFile("uploads/x", 9, f"{number:064d}"), None)
        self.datasets[owner].append(dataset.id)

    def submit(self, owner: str, spec: specs.Spec, dataset: int, **values: Any) -> None:
        """A job; acknowledged once the transaction has been."""
        choice = self.datasets[owner]
        body = CreateJob(stages=spec("tiny", choice[dataset % len(choice)]), **values)
        # As the API does: in company where nothing is known of its work, else by itself.
        try:
            made = create_together([Submission(owner, body)])[0]
        except NotTogether:
            made = None
        if isinstance(made, ServiceError):
            raise made
        if made is not None:
            self.jobs.append(json.loads(made.body)["id"])
            return
        with open_transaction() as tx:
            job = create_job(tx, owner, body)
        self.jobs.append(job.id)

    def submit_on(self, job_id: str) -> None:
        """A job on the model that another one has trained; refused where there is none."""
        owner = self.owner_of(job_id)
        body = CreateJob(stages=specs.tuned(f"{job_id}:sft", self.datasets[owner][0]))
        with open_transaction() as tx:
            job = create_job(tx, owner, body)
        self.jobs.append(job.id)

    def cancel(self, job_id: str, *, dies: bool = False) -> None:
        """dies: the API's process does, after the commit."""
        with open_transaction() as tx:
            _, runs = changes.cancel(tx, self.owner_of(job_id), job_id)
        self.cancelled.add(job_id)
        self._apply([] if dies else runs)

    def pause(self, job_id: str, *, dies: bool = False) -> None:
        """See `cancel`."""
        with open_transaction() as tx:
            _, runs = changes.pause(tx, self.owner_of(job_id), job_id)
        self._apply([] if dies else runs)

    def resume(self, job_id: str, threshold: float | None = None, *, dies: bool = False) -> None:
        """Perhaps with another split. See `cancel`."""
        body = ResumeJob() if threshold is None else ResumeJob(parts={"threshold": threshold})  # type: ignore[call-arg]
        with open_transaction() as tx:
            _, runs = changes.resume(tx, self.owner_of(job_id), job_id, body)
        self._apply([] if dies else runs)

    def delete(self, job_id: str) -> None:
        """Refused where the job has not finished, or is used."""
        with open_transaction() as tx:
            changes.delete_job(tx, self.owner_of(job_id), job_id)
        self.deleted.add(job_id)

    # What workers do.

    def claim(self, worker: Worker, slot: str) -> None:
        """Begin the best run, where nothing is being done; the jobs do not know yet."""
        if worker.claimed is not None:
            return
        with open_transaction() as tx:
            claimed = queue.claim(tx, slot, worker.name)
        if claimed is not None:
            worker.claimed, worker.keeper, worker.ended = claimed, LeaseKeeper(claimed, lambda: ""), False

    def claim_and_tell(self, worker: Worker, slot: str) -> None:
        """As a worker does that nothing befalls; one that is busy claims nothing."""
        if worker.claimed is None:
            self.claim(worker, slot)
            if worker.claimed is not None:
                self.apply(worker)

    def publish_and_tell(self, worker: Worker) -> None:
        """Likewise."""
        self.publish(worker)
        self.apply(worker)

    def apply(self, worker: Worker) -> None:
        """Tell the jobs; after its end the worker is free."""
        assert worker.claimed is not None
        apply_run(worker.claimed.id)
        if worker.ended:
            worker.claimed = worker.keeper = None

    def renew(self, worker: Worker) -> None:
        """Prolong the lease."""
        assert worker.claimed is not None
        with open_transaction() as tx:
            queue.renew(tx, worker.claimed)

    def progress(self, worker: Worker, step: int) -> None:
        """Write metrics, as the keeper does."""
        assert worker.keeper is not None
        worker.keeper.note(Progress(step, 9, {"loss": 1.0 / step}))
        worker.keeper.flush()

    def checkpoint(self, worker: Worker) -> None:
        """Record one; steps rise over all, so that the newest one has the largest."""
        assert worker.claimed is not None
        self.checkpoints += 1
        location = f"runs/{worker.claimed.id}/{worker.claimed.fence}/checkpoints/{self.checkpoints}"
        with open_transaction() as tx:
            queue.record_checkpoint(tx, worker.claimed, location, self.checkpoints)

    def publish(self, worker: Worker, *, weak: bool = False) -> None:
        """As a worker does that may have lost the answer to asking before."""
        claimed = worker.claimed
        assert claimed is not None
        assert worker.keeper is not None
        worker.keeper.flush()
        summary = {"weak": weak, "weak_reason": "no better than chance", "rows": MANY_ROWS}
        with open_transaction() as tx:
            if not queue.was_published(tx, claimed):
                queue.publish(tx, claimed, outputs(claimed), summary)
        worker.ended = True

    def fail(self, worker: Worker) -> None:
        """The work cannot be done."""
        assert worker.claimed is not None
        with open_transaction() as tx:
            queue.fail(tx, worker.claimed, REFUSED)
        worker.ended = True

    def crash(self, worker: Worker) -> None:
        """The child died."""
        assert worker.claimed is not None
        with open_transaction() as tx:
            queue.crash(tx, worker.claimed, DIED)
        worker.ended = True

    def give_back(self, worker: Worker) -> None:
        """The worker is told to stop."""
        assert worker.claimed is not None
        with open_transaction() as tx:
            queue.give_back(tx, worker.claimed)
        worker.ended = True

    def die(self, worker: Worker) -> None:
        """By kill -9."""
        worker.claimed = worker.keeper = None

    def recover(self, number: int) -> None:
        """A pass; a worker that can renew is not robbed of its run."""
        before = self.running()
        recovery = self.recoveries[number]
        try:
            recovery.pass_once()
        except SQLAlchemyError:
            recovery._up_since = None
            raise
        within_grace = self.clock.now < self.renewable_since + settings().lease_seconds
        robbed = before - self.running() if within_grace else set()
        assert not robbed, f"expired before their workers could renew: {robbed}"

    # What happens to all.

    def outage(self, seconds: float) -> None:
        """The database is away: leases run out, recoveries see it, healthy workers carry on."""
        self.lapse()
        self.clock.now += seconds
        for number in range(len(self.recoveries)):
            self.do(lambda n=number: self.recover(n), Interruption(1, self.faults.lose_connection))  # type: ignore[misc]
        self.renewable_since = self.clock.now

    def standstill(self, seconds: float) -> None:
        """The whole machine was suspended, its database too."""
        self.lapse()
        self.clock.calendar += seconds
        self.renewable_since = self.clock.now

    def lapse(self) -> None:
        """No lease has been renewed for its whole length."""
        past = "UPDATE runs SET lease_until = clock_timestamp() - interval '1 second' WHERE state = 'running'"
        self.admin.execute(past)

    def settle(self) -> None:
        """No more faults: bring all to its end, resuming what is paused."""
        for worker in self.workers:
            self.die(worker)
        self.lapse()
        # The first pass may be this one's first sight of the database.
        for _ in range(2):
            self.clock.now += settings().lease_seconds + 1
            self.recover(0)
        while self._work_off() or self._resume_paused() or self._recover_and_work():
            pass

    def _resume_paused(self) -> bool:
        paused = self.paused()
        for job_id in paused:
            self.resume(job_id)
        return bool(paused)

    def _recover_and_work(self) -> bool:
        self.recover(0)
        return self._work_off()

    def _work_off(self) -> bool:
        worker, worked = self.workers[0], False
        for slot in (*SLOTS, SLOTS[0]):
            self.claim(worker, slot)
            while worker.claimed is not None:
                self.publish_and_tell(worker)
                self.claim(worker, slot)
                worked = True
        return worked

    def owner_of(self, job_id: str) -> str:
        """A job's owner."""
        with open_session() as session:
            return session.get_one(Job, job_id).owner

    def paused(self) -> list[str]:
        """Jobs that wait for a person."""
        with open_session() as session:
            return list(session.scalars(select(Job.id).where(Job.status == "paused").order_by(Job.id)))

    def running(self) -> set[str]:
        """Ids of the runs that are being done; whatever interrupts the service, the answer comes."""
        return {row[0] for row in self.admin.execute("SELECT id FROM runs WHERE state = 'running'")}

    def _apply(self, runs: list[str]) -> None:
        for run_id in runs:
            apply_run(run_id)


def outputs(claimed: ClaimedRun) -> list[NewArtifact]:
    """What a run of this kind leaves, under its own fence."""
    if claimed.kind == "validate_dataset":
        return [NewArtifact("rows", ROWS, "e" * 64, 1, [], [], {}, "cpu", 1.0, 1)]
    return [
        NewArtifact(
            output, f"runs/{claimed.id}/{claimed.fence}/out/{file}", "0" * 64, 1, [], [], {}, "cpu", 1.0, 1
        )
        for output, file in OUTPUTS[claimed.kind].items()
    ]


def _dataset(owner: str, **values: Any) -> Dataset:
    return Dataset(
        id=new_id("dataset"), owner=owner, name="pairs", kind="preference", max_bad_rows=0, **values
    )
