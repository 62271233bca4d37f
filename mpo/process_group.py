"""Ranks over torch.distributed: gloo between CPUs, NCCL between GPUs; one process a rank, on one machine."""

import pickle
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, PrefixStore, Store, rendezvous  # type: ignore[attr-defined]

from mpo.errors import RankFailed, TooFewDevices
from mpo.rank_environment import is_sharding_asked, listen_on_this_machine_alone
from mpo.ranks import Thing
from mpo.reporter import StageTask

PATIENCE = timedelta(minutes=30)
"""Longest that a rank waits for the others: rank 0 may be storing a checkpoint meanwhile."""

LOOK_SECONDS = 0.1
FAILED, ENDED, TASK = "failed", "ended", "task"
"""Keys of the store that all ranks read: what one failed of, that there is no more work, and the work."""


class ProcessGroup:
    """This process among all that train together: `mpo.ranks.Ranks`. There is one in a process."""

    def __init__(
        self, store: Store, number: int, count: int, *, sharded: bool = False, patience: timedelta = PATIENCE
    ) -> None:
        """Returns once all ranks are here. A rank's GPU is the one of its number. Raises TooFewDevices."""
        self.number, self.count, self.sharded, self.patience = number, count, sharded, patience
        self._store, self._tasks = PrefixStore("mpo", store), 0
        backend = "gloo"
        if torch.cuda.is_available():
            _refuse_shared_devices(count)
            torch.cuda.set_device(number)
            backend = "cpu:gloo,cuda:nccl"
        dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=patience)

    @classmethod
    def launched(cls) -> "ProcessGroup":
        """As torchrun, or whoever speaks like it, tells by the environment."""
        store, number, count = next(iter(rendezvous("env://")))
        return cls(store, number, count, sharded=is_sharding_asked())

    @classmethod
    def joined(
        cls,
        meeting: Path,
        number: int,
        count: int,
        *,
        sharded: bool = False,
        patience: timedelta = PATIENCE,
    ) -> "ProcessGroup":
        """By a file that every rank names, and none has made before. Nobody off this machine can reach it."""
        listen_on_this_machine_alone()
        return cls(FileStore(str(meeting), count), number, count, sharded=sharded, patience=patience)

    def sum(self, tensor: Tensor) -> Tensor:
        """In place."""
        self._together(lambda: dist.all_reduce(tensor))
        return tensor

    def gather_objects(self, thing: Thing) -> list[Thing]:
        """Over CPUs, whatever the models are on."""
        found: list[Any] = [None] * self.count
        self._together(lambda: dist.all_gather_object(found, thing))
        return found

    def _together(self, call: Callable[[], object]) -> None:
        try:
            call()
        except RuntimeError as error:
            raise self.failure() from error

    def behind(self, error: Exception) -> Exception:
        """What an error of this rank comes from: another's failure, where it waited for that one in vain."""
        waited = isinstance(error, dist.DistError)
        waited |= isinstance(error, RuntimeError) and "gloo" in str(error)
        return self.failure() if waited else error

    def failure(self) -> Exception:
        """What this rank raises where it waits in vain: what the first rank to fail told, before it left."""
        with suppress(RuntimeError):
            if self._store.check([FAILED]):
                told: Exception = pickle.loads(self._store.get(FAILED))  # noqa: S301  # of our own processes
                return told
        return RankFailed(
            "A process that trained together with this one ended without a word, or did not answer within "
            f"{self.patience.total_seconds():.0f} seconds.",
            rank=self.number,
        )

    def tell_failure(self, error: Exception) -> None:
        """What the other ranks will raise, once this process ends: that ends their waiting."""
        with suppress(RuntimeError):
            if not self._store.check([FAILED]):
                self._store.set(FAILED, _pickled(error, self.number))

    def give(self, task: StageTask) -> None:
        """Rank 0 has the others take part in a stage: `next_task` gives it to them."""
        self._store.set(f"{TASK} {self._tasks}", pickle.dumps(task))  # type: ignore[arg-type]
        self._tasks += 1

    def next_task(self) -> StageTask | None:
        """Waits for what rank 0 gives; None where there is no more, or rank 0 is gone."""
        key = f"{TASK} {self._tasks}"
        try:
            while not self._store.check([key]):
                if self._store.check([ENDED]):
                    return None
                time.sleep(LOOK_SECONDS)  # rank 0 may run a stage alone for hours: no call waits that long
        except RuntimeError:
            return None  # the store is gone with whoever kept it
        self._tasks += 1
        task: StageTask = pickle.loads(self._store.get(key))  # noqa: S301  # of our own processes
        return task

    def __enter__(self) -> Self:
        """It is left at the end of the block, however that comes."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Where rank 0 leaves, the others need not wait for work any more."""
        if self.number == 0:
            with suppress(RuntimeError):
                self._store.set(ENDED, "")
        if kind is None:  # else it may have broken, and its end would wait for what never comes
            dist.destroy_process_group()


def _refuse_shared_devices(count: int) -> None:
    if count > (devices := torch.cuda.device_count()):
        raise TooFewDevices(
            f"{count} processes are to train together, and there are {devices} GPUs: each needs its own.",
            ranks=count,
            devices=devices,
        )


def _pickled(error: Exception, number: int) -> Any:
    error.add_note(f"It was raised on rank {number}.")
    try:
        told = pickle.dumps(error)
        pickle.loads(told)  # noqa: S301  # some can be written and not be read
    except Exception:  # a border: whatever a library's exception holds
        told = pickle.dumps(RankFailed(f"{type(error).__name__} on rank {number}: {error}", rank=number))
    return told
