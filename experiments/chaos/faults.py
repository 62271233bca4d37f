"""Faults: what is done to which process. A schedule comes of its seed alone, the process of the moment."""

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

from experiments.chaos.process_table import Process, descendants
from experiments.chaos.settings import Settings
from experiments.chaos.stack import NotInTime, Stack, send

KILL, FREEZE, STOP, WIPE = "kill -9", "freeze", "SIGTERM", "wipe"
ACTIONS: dict[str, tuple[str, ...]] = {
    "api": (KILL, FREEZE, STOP),
    "api-process": (KILL, FREEZE, STOP),
    "worker-cpu": (KILL, FREEZE, STOP),
    "worker-gpu": (KILL, FREEZE, STOP),
    "child-cpu": (KILL, FREEZE, STOP),
    "child-gpu": (KILL, FREEZE, STOP),
    "fork-server-cpu": (KILL, FREEZE, STOP),
    "fork-server-gpu": (KILL, FREEZE, STOP),
    "sampler": (KILL, FREEZE, STOP),
    "postgres": (KILL, FREEZE, STOP),
    "postgres-backend": (KILL,),
    "valkey": (KILL, FREEZE, STOP, WIPE),
    "mpo-up": (KILL,),
}
OFTEN = frozenset({"worker-cpu", "worker-gpu", "child-cpu", "child-gpu"})
RARE = frozenset({"mpo-up"})
SHORT_FREEZE_SECONDS = 5.0
"""Of those that everything waits for; workers and children are frozen past their lease."""
SERVERS = frozenset({"api", "api-process", "postgres", "valkey"})
ONE_OF_MANY = {"api-process": "api", "postgres-backend": "postgres"}
MOST_CRASHES_OF_A_RUN = 2
"""A third death of a child without progress is poison, and fails its run: that is a test of its own."""


@dataclass(frozen=True)
class Fault:
    """at: seconds since the storm began. seconds: how long a frozen process stays so."""

    at: float
    victim: str
    action: str
    seconds: float
    choice: float
    """Which of several processes, in [0, 1)."""


def schedule(seed: int, settings: Settings) -> list[Fault]:
    """The storm of a seed."""
    rng = random.Random(f"faults {seed}")  # noqa: S311  # a schedule, no secret
    victims = list(ACTIONS)
    weights = [4 if each in OFTEN else 1 if each in RARE else 2 for each in victims]
    faults, at = [], 0.0
    while (at := at + rng.uniform(0.2, settings.up_to_fault_seconds)) < settings.storm_seconds:
        [victim] = rng.choices(victims, weights)
        longest = settings.longest_freeze_seconds
        if victim in SERVERS:
            longest = min(longest, SHORT_FREEZE_SECONDS)
        action = rng.choice(ACTIONS[victim])
        faults.append(Fault(at, victim, action, rng.uniform(0.3, longest), rng.random()))
    return faults


@dataclass
class Storm:
    """Brings a schedule over a stack; `done` counts what found its victim, by victim and action."""

    stack: Stack
    log: Callable[[str], None]
    done: Counter[tuple[str, str]] = field(default_factory=Counter)
    _crashes: Counter[str] = field(default_factory=Counter)
    _thaws: list[threading.Timer] = field(default_factory=list)

    def rage(self, faults: list[Fault]) -> None:
        """Returns when all have come and everything that was frozen goes on; raises NotInTime."""
        begun = time.monotonic()
        for fault in faults:
            time.sleep(max(0.0, begun + fault.at - time.monotonic()))
            struck_at = time.monotonic()
            pids = self.inflict(fault)
            found = f"of {', '.join(map(str, pids))}" if pids else "of nothing: it is not there"
            held = f" for {fault.seconds:.1f} s" if fault.action == FREEZE else ""
            self.log(f"{struck_at - begun:7.2f} s  {fault.action} {fault.victim}{held} {found}")
            self.done[fault.victim, fault.action] += bool(pids)
            if fault.victim == "mpo-up":
                # A stack that starts is not yet one to torment: the rest of the schedule comes later.
                begun += time.monotonic() - struck_at
        for thaw in self._thaws:
            thaw.join()

    def inflict(self, fault: Fault) -> list[int]:
        """Returns the processes that it struck."""
        if fault.victim == "mpo-up":
            pid = self.stack.supervisor
            self.stack.kill_supervisor()
            self.stack.start()
            return [pid]
        struck = self._victims(fault)
        if fault.action == FREEZE:
            return self._freeze(struck, fault.seconds)
        if fault.action == WIPE:
            return [struck[0].pid] if struck and self._wipe() else []
        number = signal.SIGKILL if fault.action == KILL else signal.SIGTERM
        return [process.pid for process in struck[:1] if send(process.pid, number)]

    def _victims(self, fault: Fault) -> list[Process]:
        """The process, and for a freeze of Postgres all of its backends too."""
        table, pids = self.stack.table(), self.stack.pids()
        name, _, slot = fault.victim.rpartition("-")
        if name in ("child", "fork-server"):
            below = [table[p] for p in sorted(descendants(table, pids.get(f"worker-{slot}", 0)))]
            if name == "fork-server":
                return [p for p in below if p.is_fork_server and p.parent == pids.get(f"worker-{slot}")][:1]
            return self._spared([p for p in below if p.run], fault)
        server = pids.get(ONE_OF_MANY.get(fault.victim, fault.victim), 0)
        below = [table[p] for p in sorted(descendants(table, server))]
        if fault.victim in ONE_OF_MANY:
            return below[int(fault.choice * len(below)) :][:1]
        own = [table[server]] if server in table else []
        return [*own, *below] if (fault.victim, fault.action) == ("postgres", FREEZE) else own

    def _spared(self, children: list[Process], fault: Fault) -> list[Process]:
        """One child, but never a run's third: it would rightly be taken for poison."""
        fair = [p for p in children if p.run and self._crashes[p.run[0]] < MOST_CRASHES_OF_A_RUN]
        chosen = fair[int(fault.choice * len(fair)) :][:1]
        if fault.action == KILL:
            self._crashes.update(p.run[0] for p in chosen if p.run)
        return chosen

    def _freeze(self, struck: list[Process], seconds: float) -> list[int]:
        frozen = [p.pid for p in struck if send(p.pid, signal.SIGSTOP)]
        thaw = threading.Timer(seconds, lambda: [send(pid, signal.SIGCONT) for pid in frozen])
        thaw.start()
        self._thaws.append(thaw)
        return frozen

    def _wipe(self) -> bool:
        """All data of Valkey, while its clients are connected."""
        from redis import Redis, RedisError

        socket = f"{(self.stack.state.root / 'sockets').read_text()}/valkey.sock"
        try:
            with Redis(unix_socket_path=socket, socket_timeout=2.0) as valkey:
                return bool(valkey.flushall())
        except (RedisError, OSError):
            return False


__all__ = ["ACTIONS", "FREEZE", "KILL", "STOP", "WIPE", "Fault", "NotInTime", "Storm", "schedule"]
