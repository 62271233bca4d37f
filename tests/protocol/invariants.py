"""What must hold between any two steps, whoever did what to whom."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import psycopg

from core.queue import POISON_CRASHES, POISON_LEASES

LIVE = ("queued", "running")
ENDED = ("succeeded", "failed", "cancelled")
Row = dict[str, Any]

JOBS = "SELECT id, owner, status, pause, priority, error, event_counter, deleted_at FROM jobs"
STAGES = "SELECT job_id, name, status, cached, run_id, artifacts, key, started_at FROM stages"
RUNS = (
    "SELECT id, owner, key, job_id, kind, state, fence, applied, attempt, priority, "
    "crashes_without_progress, leases_lost_without_progress, checkpoint, finished_at, lease_until "
    "FROM runs ORDER BY id"
)
ARTIFACTS = "SELECT id, owner, key, output, run_id, location, deleted_at FROM artifacts"
REFERENCES = "SELECT artifact_id, job_id, stage_name FROM artifact_references"
EVENTS = "SELECT job_id, array_agg(id ORDER BY id) AS ids FROM events GROUP BY job_id"
READ = "SELECT " + ", ".join(
    f"(SELECT coalesce(json_agg(row), '[]') FROM ({rows}) AS row)"
    for rows in (JOBS, STAGES, RUNS, ARTIFACTS, REFERENCES, EVENTS)
)


@dataclass
class Snapshot:
    """All rows, read by one statement while nothing else is under way; moments are texts."""

    jobs: dict[str, Row]
    stages: list[Row]
    runs: dict[str, Row]
    artifacts: dict[str, Row]
    references: set[tuple[str, str, str]]
    events: dict[str, list[int]]

    @classmethod
    def take(cls, connection: "psycopg.Connection[Any]") -> "Snapshot":
        """Read everything."""
        found = connection.execute(READ).fetchone()  # type: ignore[arg-type]
        assert found is not None
        jobs, stages, runs, artifacts, references, events = found
        return cls(
            jobs={row["id"]: row for row in jobs},
            stages=stages,
            runs={row["id"]: row for row in runs},
            artifacts={row["id"]: row for row in artifacts},
            references={tuple(row.values()) for row in references},
            events={row["job_id"]: row["ids"] for row in events},
        )


@dataclass
class Invariants:
    """Compares each snapshot with the one before."""

    before: Snapshot | None = None
    told: dict[str, str] = field(default_factory=dict)

    def check(self, now: Snapshot, acknowledged: list[str], cancelled: set[str]) -> None:
        """Raises AssertionError, naming what is broken."""
        lost = [job_id for job_id in acknowledged if job_id not in now.jobs]
        assert not lost, f"acknowledged and gone: {lost}"
        uncancelled = [job_id for job_id in cancelled if now.jobs[job_id]["status"] != "cancelled"]
        assert not uncancelled, f"cancelled and alive: {uncancelled}"
        runs(now)
        artifacts(now)
        jobs(now)
        for stage in now.stages:
            stage_stands(now, stage)
        if self.before is not None:
            moved(self.before, now)
        self.before = now


def runs(now: Snapshot) -> None:
    """One live run a key, counters within their limits, a lease while running."""
    keyed = (r for r in now.runs.values() if r["key"] is not None and r["state"] in LIVE)
    live = Counter((r["owner"], r["key"]) for r in keyed)
    assert all(n == 1 for n in live.values()), f"two live runs of a key: {live}"
    current = {(a["owner"], a["key"]) for a in now.artifacts.values() if a["deleted_at"] is None}
    assert not current & set(live), f"done again though it is there: {current & set(live)}"
    for run in now.runs.values():
        assert run["crashes_without_progress"] < POISON_CRASHES, run
        assert run["leases_lost_without_progress"] <= POISON_LEASES, run
        assert 1 <= run["attempt"] <= run["fence"] + 1, f"attempts without a claim: {run}"
        assert (run["state"] in ENDED) == (run["finished_at"] is not None), run
        assert (run["state"] == "running") == (run["lease_until"] is not None), run


def artifacts(now: Snapshot) -> None:
    """A succeeded run has published once, by its last fence; no other has published."""
    by_run: dict[str, list[Row]] = {}
    for artifact in now.artifacts.values():
        by_run.setdefault(artifact["run_id"], []).append(artifact)
    for run in now.runs.values():
        found = by_run.get(run["id"], [])
        assert (run["state"] == "succeeded") == bool(found), (
            f"{run['state']} with {len(found)} artifacts: {run}"
        )
        outputs = [artifact["output"] for artifact in found]
        assert len(outputs) == len(set(outputs)), f"published twice: {run}"
        if run["kind"] != "validate_dataset":
            ours = f"runs/{run['id']}/{run['fence']}/"
            assert all(a["location"].startswith(ours) for a in found), f"another fence's: {found}"
    current = Counter(
        (a["owner"], a["key"], a["output"]) for a in now.artifacts.values() if a["deleted_at"] is None
    )
    assert all(n == 1 for n in current.values()), f"two current artifacts: {current}"


def jobs(now: Snapshot) -> None:
    """Events are numbered without a gap; what a job that ended or rests has queued is not worked on."""
    own = [(run["job_id"], run) for run in now.runs.values() if run["job_id"] is not None]
    for job in now.jobs.values():
        ids = now.events.get(job["id"], [])
        assert ids == list(range(1, job["event_counter"] + 1)), f"events of {job['id']}: {ids}"
        states = {s["status"] for s in now.stages if s["job_id"] == job["id"]}
        if job["status"] == "succeeded":
            assert states == {"succeeded"}, f"{job['id']} has succeeded with {states}"
        if job["status"] in ENDED:
            assert states <= set(ENDED), f"{job['id']} has ended with {states}"
        assert (job["status"] == "paused") == (job["pause"] is not None), job
    for job_id, run in own:
        job = now.jobs[job_id]
        if job["status"] in ENDED:
            assert run["state"] in ENDED, f"{run['id']} is {run['state']}, and its job {job['status']}"
        elif job["pause"] is not None and job["pause"]["reason"] == "user":
            assert run["state"] not in LIVE, f"{run['id']} is {run['state']}, and its job rests"


def stage_stands(now: Snapshot, stage: Row) -> None:
    """What a stage shows is there: artifacts with a reference to each, or a run that will be heard of."""
    job, run = now.jobs[stage["job_id"]], now.runs.get(stage["run_id"] or "")
    if stage["status"] == "succeeded":
        assert stage["artifacts"], stage
        for artifact_id in stage["artifacts"].values():
            artifact = now.artifacts[artifact_id]
            assert (artifact["owner"], artifact["key"]) == (job["owner"], stage["key"]), (stage, artifact)
            if job["deleted_at"] is None:
                assert artifact["deleted_at"] is None, f"gone, and in use: {artifact}"
                assert (artifact_id, job["id"], stage["name"]) in now.references, f"not held: {stage}"
    if stage["status"] in LIVE:
        assert run is not None, f"waits for nothing: {stage}"
        assert (run["owner"], run["key"]) == (job["owner"], stage["key"]), f"waits for other work: {stage}"
        heard = run["state"] in LIVE or not run["applied"]
        assert heard, f"waits for a run that has {run['state']}, as all were told: {stage}"
        if run["state"] in LIVE:
            assert run["priority"] >= job["priority"], f"less urgent than who waits: {run}"


def moved(before: Snapshot, now: Snapshot) -> None:
    """What has ended stays so; fences, attempts, events and steps of checkpoints only rise."""
    for run_id, then in before.runs.items():
        run = now.runs[run_id]
        assert run["fence"] >= then["fence"], f"the fence fell: {then} -> {run}"
        assert run["attempt"] >= then["attempt"], f"attempts fell: {then} -> {run}"
        if then["state"] in ENDED:
            assert (run["state"], run["fence"]) == (then["state"], then["fence"]), f"{then} -> {run}"
        if then["checkpoint"] is not None:
            step = (run["checkpoint"] or {"step": -1})["step"]
            assert step >= then["checkpoint"]["step"], f"work was thrown away: {then} -> {run}"
    for job_id, then in before.jobs.items():
        job = now.jobs[job_id]
        if then["status"] in ENDED:
            assert job["status"] == then["status"], f"{then} -> {job}"
    new = [run for run_id, run in now.runs.items() if run_id not in before.runs and run["key"] is not None]
    for run in new:
        kept = [
            r["checkpoint"]["step"]
            for r in before.runs.values()
            if (r["owner"], r["key"]) == (run["owner"], run["key"]) and r["checkpoint"] is not None
        ]
        step = (run["checkpoint"] or {"step": 0})["step"]
        assert step >= max(kept, default=0), f"began before the newest checkpoint {max(kept)}: {run}"


REASONS = ("training_diverged", "crashed", "worker_lost", "dataset_invalid")


def all_ended(now: Snapshot) -> None:
    """After everything was let run: nothing waits, and only what was failed has failed."""
    stuck = {job["id"]: job["status"] for job in now.jobs.values() if job["status"] not in ENDED}
    assert not stuck, f"stuck: {stuck}: {[s for s in now.stages if s['job_id'] in stuck]}"
    left = [run for run in now.runs.values() if run["state"] not in ENDED or not run["applied"]]
    assert not left, f"left behind: {left}"
    failed = {run["key"] or "" for run in now.runs.values() if run["state"] == "failed"}
    for job in now.jobs.values():
        if job["status"] == "failed":
            assert job["error"]["code"] in REASONS, job
            keys = {s["key"] for s in now.stages if s["job_id"] == job["id"]} | {""}
            assert failed & keys, f"failed for no reason: {job}"
