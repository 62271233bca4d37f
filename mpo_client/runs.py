"""Runs: the execution of one unit of queued work. Artifacts: what a run left, and where it came from."""

from typing import Literal

from pydantic import JsonValue

from mpo_client.calls import Call, Plan, Reply, path, send, text
from mpo_client.nouns import Awaiting, Blocking, answers


class RunError(Reply):
    code: str
    message: str
    output: str | None = None


class Attempt(Reply):
    """A run of the same work: a cancelled or paused one is taken up by another."""

    run_id: str
    status: str
    attempt: int
    created_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: RunError | None = None


class Run(Reply):
    """attempt: 1, and one more for each crash since."""

    id: str
    kind: str
    status: str
    slot: Literal["cpu", "gpu"]
    job: str | None = None
    subject: str | None = None
    config: dict[str, JsonValue] = {}
    attempt: int = 1
    attempts: list[Attempt] = []
    worker: str | None = None
    checkpoint_step: int | None = None
    artifacts: dict[str, str] = {}
    created_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    error: RunError | None = None


class ArtifactInput(Reply):
    name: str
    kind: Literal["artifact", "dataset", "model"]
    id: str
    sha256: str


class Artifact(Reply):
    """An output of a run; its inputs lead back to what was uploaded."""

    id: str
    kind: str
    key: str
    sha256: str
    bytes: int
    run_id: str
    job_id: str | None = None
    config: dict[str, JsonValue] = {}
    inputs: list[ArtifactInput] = []
    versions: dict[str, str] = {}
    hardware: str = ""
    wall_seconds: float | None = None
    peak_memory_bytes: int | None = None
    created_at: int | None = None


class RunMethods:
    """What both clients can do with runs."""

    @answers
    def get(self, run_id: str) -> Plan[Run]:
        """The run, and the other runs of the same work."""
        return send(Call("GET", path("runs", run_id), Run))

    @answers
    def log(self, run_id: str) -> Plan[str]:
        """The end of what its process printed."""
        return text(Call("GET", path("runs", run_id, "log"), Reply))


class ArtifactMethods:
    """What both clients can do with artifacts."""

    @answers
    def get(self, artifact_id: str) -> Plan[Artifact]:
        return send(Call("GET", path("artifacts", artifact_id), Artifact))


class Runs(Blocking, RunMethods):
    """Of a Client."""


class AsyncRuns(Awaiting, RunMethods):
    """Of an AsyncClient."""


class Artifacts(Blocking, ArtifactMethods):
    """Of a Client."""


class AsyncArtifacts(Awaiting, ArtifactMethods):
    """Of an AsyncClient."""
