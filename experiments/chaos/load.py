"""Clients that upload, submit and change their minds, and write down all that they were promised."""

import gzip
import hashlib
import json
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import psycopg

from experiments.chaos.caller import Caller
from experiments.chaos.ledger import DELETED, Entry, Ledger
from experiments.chaos.settings import MODEL, PROMPT, quick_method
from experiments.chaos.stack import Stack

WARM = ("sft", "dpo", "reward_model")
FRESH = ("sft", "dpo", "reward_model", "ppo")
MOST_WAITING = {"runs": 10, "jobs": 4}
LOOK_SECONDS = 0.5
IDLE_SECONDS = 0.05
_WAITING = """
SELECT (SELECT count(*) FROM runs WHERE state = 'queued' AND slot = 'cpu') AS runs,
       (SELECT count(*) FROM jobs WHERE status IN ('queued', 'running')) AS jobs
"""


@dataclass(frozen=True)
class World:
    """What the clients work with: a dataset, jobs that are in the cache already, models to compare."""

    dataset: str
    models: tuple[str, ...]


class Backlog:
    """How long the queues are: clients add no more than is worked off, so that the end does not wait long."""

    def __init__(self, stack: Stack, calm: threading.Event) -> None:
        self._stack, self._calm, self._waiting = stack, calm, {"runs": 0, "jobs": 0}
        self._trains = True
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def has_room(self, of: str) -> bool:
        """Whether something may be added to the cpu slots' `runs`, or to the `jobs` that train."""
        return self._waiting[of] < MOST_WAITING[of] and (self._trains or of != "jobs")

    def train_no_more(self) -> None:
        """From now on the gpu slot is for whoever measures how soon it works again."""
        self._trains = False

    def _watch(self) -> None:
        while not self._calm.wait(LOOK_SECONDS):
            try:
                [now] = self._stack.sql(_WAITING)
            except (psycopg.Error, OSError):
                continue
            self._waiting = {"runs": now.runs, "jobs": now.jobs}


class Client:
    """One thread's doings; what it chooses comes of its seed, when it comes of the service."""

    def __init__(
        self, number: str, seed: str, caller: Caller, ledger: Ledger, backlog: Backlog, world: World
    ) -> None:
        self._name, self._random, self._caller = number, random.Random(seed), caller  # noqa: S311  # a schedule
        self._ledger, self._backlog, self._world = ledger, backlog, world
        self._made = 0
        self._jobs: list[str] = []
        self._uploads: list[str] = []

    def work(self, stop: threading.Event) -> None:
        """Until it is told to stop; what is under way is brought to its answer."""
        doings: list[tuple[Callable[[], None], int, str | None]] = [
            (self.upload, 30, "runs"),
            (self.submit_cached, 50, None),
            (self.submit_fresh, 8, "jobs"),
            (self.compare, 2, "runs"),
            (self.cancel, 3, None),
            (self.pause_and_perhaps_resume, 3, None),
            (self.delete_job, 4, None),
            (self.delete_upload, 2, None),
        ]
        weights = [weight for _, weight, _ in doings]
        while not stop.is_set():
            [(act, _, queue)] = self._random.choices(doings, weights)
            if queue is None or self._backlog.has_room(queue):
                act()
            else:
                time.sleep(IDLE_SECONDS)

    def upload(self) -> None:
        """A few rows, one upload in ten with a row that is none; in one call or in two."""
        name, content, is_good = self._new_name("dataset"), *self._content()
        ends = ["ready" if is_good else "invalid"]
        digest = hashlib.sha256(content).hexdigest()
        if self._random.random() < 0.5:
            files = {"file": ("pairs.jsonl.gz", content, "application/gzip")}
            fields = {"name": name, "kind": "preference"}
            answer = self._caller.create("/v1/datasets", name, files=files, data=fields)
        else:
            answer = self._in_two_calls(name, content)
        if answer is not None and answer.status_code in (200, 202):
            made = answer.json()["id"]
            self._ledger.acknowledged(Entry("dataset", made, name, ends, digest))
            self._uploads.append(made)

    def _in_two_calls(self, name: str, content: bytes) -> Any:
        created = self._caller.create("/v1/datasets", name, json={"name": name, "kind": "preference"})
        if created is None or created.status_code != 201:
            return created
        made = created.json()["id"]
        # Promised by now: at least that it is there.
        self._ledger.acknowledged(Entry("dataset", made, name, ["awaiting_content", "ready", "invalid"]))
        return self._caller.ask("PUT", f"/v1/datasets/{made}/content", content=content)

    def _content(self) -> tuple[bytes, bool]:
        rows = [
            json.dumps({"prompt": PROMPT, "chosen": f"Here {self._random.random()}", "rejected": "There"})
            for _ in range(self._random.randint(2, 5))
        ]
        is_good = self._random.random() < 0.9
        lines = rows if is_good else [*rows, '{"prompt": 1}']
        return gzip.compress("\n".join(lines).encode(), mtime=0), is_good

    def submit_cached(self) -> None:
        """A job whose every stage has been done for another one."""
        self._submit(self._random.choice(WARM), seed=0)

    def submit_fresh(self) -> None:
        """A job that nobody has submitted, or that another client has just submitted too."""
        self._submit(self._random.choice(FRESH), seed=self._random.randint(1, 400))

    def _submit(self, kind: str, seed: int) -> None:
        name = self._new_name("job")
        spec = {"name": name, "model": MODEL, "dataset": self._world.dataset, "seed": seed}
        answer = self._caller.create("/v1/jobs", name, json={**spec, "method": quick_method(kind)})
        if answer is not None and answer.status_code == 202:
            made = answer.json()["id"]
            self._ledger.acknowledged(Entry("job", made, name, ["succeeded"], seed=seed))
            self._jobs.append(made)

    def compare(self) -> None:
        """Two models on one prompt."""
        name = self._new_name("comparison")
        models = self._random.sample(self._world.models, 2)
        body = {"models": models, "prompts": [PROMPT], "sampling": {"max_tokens": 4, "seed": self._made}}
        answer = self._caller.create("/v1/comparisons", name, json=body)
        if answer is not None and answer.status_code == 202:
            self._ledger.acknowledged(Entry("comparison", answer.json()["id"], name, ["succeeded"]))

    def cancel(self) -> None:
        """One of the last jobs; that it has ended already is an answer too."""
        if job := self._recent_job():
            self._ledger.expect(job, "cancelled", "succeeded")
            answer = self._caller.ask("POST", f"/v1/jobs/{job}/cancel")
            if answer is not None:
                self._ledger.expect(job, "cancelled" if answer.is_success else "succeeded")

    def pause_and_perhaps_resume(self) -> None:
        """Half of them stay paused."""
        if not (job := self._recent_job()):
            return
        self._ledger.expect(job, "paused", "succeeded")
        paused = self._caller.ask("POST", f"/v1/jobs/{job}/pause")
        if paused is None or not paused.is_success:
            return
        self._ledger.expect(job, "paused")
        if self._random.random() < 0.5:
            self._ledger.expect(job, "paused", "succeeded")
            # 409: a first attempt, whose answer was lost, has resumed it.
            if self._caller.ask("POST", f"/v1/jobs/{job}/resume") is not None:
                self._ledger.expect(job, "succeeded")

    def delete_job(self) -> None:
        """An early job, which has ended; what is in use or not finished is refused."""
        if len(self._jobs) > 20:
            job = self._jobs.pop(self._random.randrange(10))
            self._delete("jobs", job)

    def delete_upload(self) -> None:
        """An early upload."""
        if len(self._uploads) > 20:
            self._delete("datasets", self._uploads.pop(self._random.randrange(10)))

    def _delete(self, noun: str, id_: str) -> None:
        before = self._ledger.entries[id_].ends
        self._ledger.expect(id_, *before, DELETED)
        answer = self._caller.ask("DELETE", f"/v1/{noun}/{id_}")
        # 404: a first attempt, whose answer was lost, has deleted it.
        if answer is not None and (answer.is_success or answer.status_code == 404):
            self._ledger.expect(id_, DELETED)
        elif answer is not None:
            self._ledger.expect(id_, *before)

    def _recent_job(self) -> str | None:
        """Taken out of the list: nothing else is asked of it then."""
        return self._jobs.pop() if self._jobs else None

    def _new_name(self, noun: str) -> str:
        self._made += 1
        name = f"{self._name}-{self._made}"
        self._ledger.asked(noun, name)
        return name
