"""Stages on several ranks: rank 0 leads through a plan, the others take part where a stage can be spread."""

from collections.abc import Callable
from contextlib import suppress

from mpo.errors import StageInterrupted
from mpo.process_group import ProcessGroup
from mpo.reporter import Reporter, SilentReporter, StageTask
from mpo.spreading import is_spread
from mpo.stages import run_stage


def lead(group: ProcessGroup, task: StageTask, reporter: Reporter) -> None:
    """Runs a stage as `run_stage` does: with the other ranks, or alone while they wait.

    Raises mpo.errors.*.
    """
    if is_spread(task.config):
        group.give(task)
        take_part(group, task, reporter)
    else:
        run_stage(task, reporter)


def follow(group: ProcessGroup, should_stop: Callable[[], bool]) -> None:
    """Takes part in every stage that rank 0 leads, until it leaves its group. Raises mpo.errors.*."""
    while (task := group.next_task()) is not None:
        with suppress(StageInterrupted):  # rank 0 says so, and ends
            take_part(group, task, SilentReporter(should_stop))


def take_part(group: ProcessGroup, task: StageTask, reporter: Reporter) -> None:
    """This rank's part in a stage; the others are told what it fails of. Raises mpo.errors.*."""
    try:
        run_stage(task, reporter, group)
    except StageInterrupted:  # all ranks agreed to it
        raise
    except Exception as error:
        cause = group.behind(error)
        group.tell_failure(cause)
        if cause is error:
            raise
        raise cause from error
