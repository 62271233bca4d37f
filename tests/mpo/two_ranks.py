"""Two real processes that are the ranks of one group, and do what a test asks of both.

A case is a function of a module, called in either process with the rank's group and a test's arguments.
"""

import multiprocessing
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mpo.errors import StageInterrupted
from mpo.leading import take_part
from mpo.process_group import ProcessGroup
from mpo.reporter import SilentReporter, StageTask
from tests.mpo.tiny import RecordingReporter, untimed

PATIENCE = timedelta(seconds=60)
Run = Callable[..., list[Any]]
"""Has both ranks do something: what `TwoRanks.pair` gives."""

spawning, forking = multiprocessing.get_context("spawn"), multiprocessing.get_context("fork")


class TwoRanks:
    """Pairs of ranks, each forked from one process that has the imports done: a start costs seconds."""

    def __init__(self) -> None:
        self._pipe, theirs = spawning.Pipe()
        self._process = spawning.Process(target=_fork_pairs, args=(theirs,))
        self._process.start()
        theirs.close()

    @contextmanager
    def pair(self, folder: Path, patience: timedelta = PATIENCE, sharded: bool = False) -> Iterator[Run]:
        """A fresh pair. Called with a case and its arguments, gives what it returned on either rank, or the
        error that it raised there; None of a rank that was killed. The first case that raises is the last."""
        self._ask("start", folder / "meeting", patience, sharded)
        yield partial(self._ask, "run", folder / "meeting")
        self._ask("end", folder / "meeting")

    def _ask(self, *what: object) -> list[Any]:
        self._pipe.send(what)
        answer: list[Any] = self._pipe.recv()
        return answer

    def close(self) -> None:
        """Returns when all have ended."""
        self._pipe.close()
        self._process.join()


def _fork_pairs(pipe: Connection) -> None:
    torch.set_num_threads(1)
    pairs: dict[Path, list[tuple[Any, Connection]]] = {}
    while True:
        try:
            what, meeting, *given = pipe.recv()
        except EOFError:
            return
        if what == "start":
            pairs[meeting] = [_fork_rank(meeting, number, *given) for number in range(2)]
            pipe.send([])
        elif what == "run":
            pipe.send(_ask_all([ours for _, ours in pairs[meeting]], tuple(given)))
        else:
            _ask_all([ours for _, ours in pairs[meeting]], None)
            for process, _ in pairs.pop(meeting):
                process.join()
            pipe.send([])


def _fork_rank(meeting: Path, number: int, *how: object) -> tuple[Any, Connection]:
    ours, theirs = forking.Pipe()
    process = forking.Process(target=_serve, args=(theirs, meeting, number, *how))
    process.start()
    theirs.close()
    return process, ours


def _ask_all(pipes: list[Connection], what: object) -> list[Any]:
    for pipe in pipes:
        with suppress(OSError):
            pipe.send(what)
    return [_answer(pipe) for pipe in pipes]


def _answer(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, OSError):
        return None


def _serve(pipe: Connection, meeting: Path, number: int, patience: timedelta, sharded: bool) -> None:
    with ProcessGroup.joined(meeting, number, 2, patience=patience, sharded=sharded) as group:
        while (asked := pipe.recv()) is not None:
            case, *arguments = asked
            try:
                pipe.send(case(group, *arguments))
            except Exception as error:
                pipe.send(error)
                os._exit(1)


def run_stage(group: ProcessGroup, task: StageTask) -> list[Any]:
    """A case: the stage as a plan runs it; the steps that were reported."""
    reporter = RecordingReporter()
    take_part(group, task, reporter if group.number == 0 else SilentReporter(lambda: False))
    return reporter.steps


def interrupt_stage(group: ProcessGroup, task: StageTask, step: int, kept: Path) -> list[Any]:
    """A case: the stage until it is asked to stop after a step; what was reported until then."""
    reporter = RecordingReporter(kept, step)
    try:
        take_part(group, task, reporter if group.number == 0 else SilentReporter(lambda: False))
    except StageInterrupted:
        return reporter.steps
    raise AssertionError("the stage has ended")


def weights(task: StageTask) -> torch.Tensor:
    tensors = load_file(task.output / "model" / "model.safetensors")
    return torch.cat([tensors[name].flatten().double() for name in sorted(tensors)])


def assert_alike(found: list[Any], expected: list[Any]) -> None:
    """Steps of two runs: every number to 1e-5."""
    assert len(found) == len(expected) > 0
    for (step, total, metrics), (step_alone, total_alone, alone) in zip(found, expected, strict=True):
        assert (step, total) == (step_alone, total_alone)
        assert metrics.keys() == alone.keys()
        assert untimed(metrics) == pytest.approx(untimed(alone), rel=1e-5, abs=1e-6)
