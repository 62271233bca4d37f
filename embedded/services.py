"""Our own processes: how each is started, and with which environment."""

import http.client
import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from pathlib import Path

from embedded import postgres, valkey
from embedded.liveness import Answers
from embedded.shipped import examples_folder
from embedded.state import StateFolder
from embedded.supervisor import Program
from mpo.machine_memory import machine_memory

API = "api"
MOST_API_PROCESSES = 2
HOST = "127.0.0.1"
TRAINING_MEMORY = "MPO_TRAINING_MEMORY_BYTES"
MIGRATE_SECONDS = 120.0
READY_SECONDS = 60.0
# libpq's own variables would lead every process to another database.
_NOT_INHERITED = frozenset(
    {"PGHOST", "PGHOSTADDR", "PGPORT", "PGDATABASE", "PGUSER", "PGPASSWORD", "PGPASSFILE", "PGSERVICE"}
    | {"PGSERVICEFILE", "PGSSLMODE", "PGOPTIONS", "PGDATA", "MPO_ADMIN_KEY"}
)
# Devices of NVIDIA's and AMD's drivers, and WSL's of either: workers take a GPU unasked, where they see one.
_GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/kfd"), Path("/dev/dxg"))
GRACEFUL_API_SECONDS = 8
"""For requests under way; long polls and event streams end at once."""
_API_GRACE_SECONDS = 15.0
_WORKER_GRACE_SECONDS = 30.0
_SAMPLER_GRACE_SECONDS = 10.0


def inherited_environment() -> dict[str, str]:
    """This process's environment, such that a child finds the same code and not another database."""
    environment = {name: value for name, value in os.environ.items() if name not in _NOT_INHERITED}
    code = str(Path(__file__).resolve().parents[1])
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
    if code not in installed:
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (code, environment.get("PYTHONPATH"))))
    return environment


@dataclass(frozen=True)
class Services:
    state: StateFolder
    sockets: Path
    port: int
    cores: int

    def migrate(self) -> Program:
        return self._python("migrate", ("core.migrate",), {}, tier=1)

    def bootstrap(self) -> Program:
        # The folder is locked, and what an earlier `mpo up` had left has been stopped.
        module = ("core.bootstrap", "--nobody-works")
        return self._python("bootstrap", module, {"MPO_ADMIN_KEY": self.state.api_key()}, tier=1)

    def api(self) -> Program:
        server = ("uvicorn", "app.main:app", "--host", HOST, "--port", str(self.port), "--no-access-log")
        # What uvicorn says before our logging is set up has a format of its own.
        quiet = ("--log-level", "warning")
        # One process uses one core: Python runs one thread at a time.
        several = ("--workers", str(min(MOST_API_PROCESSES, self.cores)))
        arguments = (*server, *several, *quiet, "--timeout-graceful-shutdown", str(GRACEFUL_API_SECONDS))
        figures = self.state.scratch / "figures"
        figures.mkdir(exist_ok=True)
        return self._python(
            API,
            arguments,
            # libuv's own: after each connection the other process gets its turn. Else one takes nearly all.
            {**_threads(1), "UV_TCP_SINGLE_ACCEPT": "1", "PROMETHEUS_MULTIPROC_DIR": str(figures)},
            tier=2,
            grace_seconds=_API_GRACE_SECONDS,
            answers=lambda _: self.is_healthy(),
        )

    def workers(self) -> list[Program]:
        """A training child may use every core, the sampler half of them: it mostly waits."""
        cpu = ("workers", "--slot", "cpu", "--concurrency", "2")
        gpu = ("workers", "--slot", "gpu", "--concurrency", "1")
        sampler_threads = max(1, self.cores // 2)
        return [
            self._worker("worker-cpu", cpu, 1, _WORKER_GRACE_SECONDS),
            self._worker("worker-gpu", gpu, self.cores, _WORKER_GRACE_SECONDS),
            self._worker("sampler", ("workers.sampler",), sampler_threads, _SAMPLER_GRACE_SECONDS),
        ]

    def is_healthy(self) -> bool:
        """Whether the API answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=2.0)
        try:
            connection.request("GET", "/healthz")
            return connection.getresponse().status == http.client.OK
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _python(
        self,
        name: str,
        module: tuple[str, ...],
        environment: dict[str, str],
        *,
        tier: int,
        grace_seconds: float = 10.0,
        answers: Answers | None = None,
    ) -> Program:
        return Program(
            name=name,
            command=(sys.executable, "-m", *module),
            environment={**self._environment(), **environment},
            # The caller's folder may hold an `app` of its own, which Python would take for ours.
            folder=self.state.scratch,
            log=self.state.log(name),
            tier=tier,
            grace_seconds=grace_seconds,
            answers=answers,
        )

    def _worker(self, name: str, module: tuple[str, ...], threads: int, grace_seconds: float) -> Program:
        sockets = self.sockets
        return self._python(
            name,
            module,
            _threads(threads),
            tier=1,
            grace_seconds=grace_seconds,
            answers=lambda pid: postgres.has_heard_of(sockets, pid),
        )

    def _environment(self) -> dict[str, str]:
        return {
            **inherited_environment(),
            "MPO_DATABASE_URL": postgres.url(self.sockets),
            "MPO_REDIS_URL": valkey.url(self.sockets),
            "MPO_STORE_URL": f"file://{self.state.store}",
            **_base_models(self.state),
            **_training_memory(),
            "MPO_SCRATCH": str(self.state.scratch),
            "HF_HUB_OFFLINE": "1",
            # All share the same cores: a thread that spins at a barrier takes the time of the one that
            # it waits for, and a training step then takes several times as long.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
            "PYTHONUNBUFFERED": "1",
        }


def _threads(count: int) -> dict[str, str]:
    return {"MPO_TORCH_THREADS": str(count), "OMP_NUM_THREADS": str(count)}


def _training_memory() -> dict[str, str]:
    """How much memory trainings have: the machine's, so that what does not fit is refused before it starts.

    Nothing where the user says how much, or where trainings run on a GPU, whose memory is not known here.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1")
    on_gpu = not hidden and any(file.exists() for file in _GPU_FILES)
    # MPO_TRAINING_DEVICE says what forecasts are of; it takes no GPU from the workers.
    if TRAINING_MEMORY in os.environ or on_gpu or os.environ.get("MPO_TRAINING_DEVICE") == "cuda":
        return {}
    return {TRAINING_MEMORY: str(machine_memory())}


def _base_models(state: StateFolder) -> dict[str, str]:
    """The shipped example model's folder, those that the user names, and those added to the state folder.

    Models may be registered over HTTP from below `MPO_MODEL_ROOTS`, or beside what the user names, and from
    the state folder.
    """
    examples = examples_folder()
    named = (Path(part).absolute() for part in os.environ.get("MPO_MODELS", "").split(os.pathsep) if part)
    folders = [*([examples / "tiny"] if examples else []), *named]
    added = sorted(path for path in state.models.iterdir() if path.is_dir())
    asked = os.environ.get("MPO_MODEL_ROOTS", "")
    roots = [asked] if asked else [str(folder.parent) for folder in folders]
    return {
        "MPO_MODELS": os.pathsep.join(map(str, [*folders, *added])),
        "MPO_MODEL_ROOTS": os.pathsep.join([*roots, str(state.models)]),
    }
