"""The library's command: `python -m mpo run SPEC --pairs FILE --model DIR --out DIR`."""

import argparse
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mpo.errors import InvalidSpec, MPOError, StageFailed, StageInterrupted
from mpo.machine_memory import machine_memory
from mpo.rank_environment import is_launched

if TYPE_CHECKING:
    from mpo.estimates_machine import Machine
    from mpo.run_plan import RunRequest

DONE, FAILED, INVALID, PAUSED, INTERRUPTED = 0, 1, 2, 3, 130


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    command = argparse.ArgumentParser(prog="python -m mpo", description="Mixed Preference Optimization.")
    run = command.add_subparsers(dest="command", required=True).add_parser(
        "run",
        help="run a whole plan in one process; run it again on the same folder to resume",
        description="Runs a whole plan in one process, or in those that torchrun starts on one machine.",
        epilog="Exit status: 0 done, 1 a stage failed, 2 bad arguments or spec or too little memory, "
        "3 paused, 130 interrupted.",
    )
    run.add_argument("spec", type=Path, help="the native spec of a job, YAML or JSON")
    run.add_argument("--pairs", type=Path, required=True, help="preference pairs, JSON Lines, plain or gzip")
    run.add_argument("--eval-pairs", type=Path, help="pairs to evaluate on, for a spec with eval_dataset")
    run.add_argument("--model", type=Path, required=True, help="folder of the model to start from")
    run.add_argument("--out", type=Path, required=True, help="folder for results; made if need be")
    run.add_argument("--max-bad-rows", type=int, default=0, help="rows of --pairs that may be unusable")
    run.add_argument("--accept-weak", action="store_true", help="go on though the reward model is weak")
    run.add_argument(
        "--accept-short-memory",
        action="store_true",
        help="go on though a stage is estimated to need more memory than there is",
    )
    return command


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    given = parser().parse_args(arguments)
    try:
        pause = _run(given)
    except InvalidSpec as error:
        return _complain(error.detail, INVALID)
    except StageFailed as error:
        return _complain(error.detail, FAILED)
    except StageInterrupted:
        return _complain("interrupted; run the same command again to go on", INTERRUPTED)
    return DONE if pause is None else _complain(pause, PAUSED)


def _run(given: argparse.Namespace) -> str | None:
    for option in ("spec", "pairs", "eval_pairs"):
        path = getattr(given, option)
        if path is not None and not path.is_file():
            raise InvalidSpec(f"{option}: there is no file {path}", field=option)
    if given.out.exists() and not given.out.is_dir():
        raise InvalidSpec(f"out: {given.out} is no folder", field="out")
    # Late: the training stack takes seconds to import, which a misspelt argument should not.
    from mpo.pipeline import run_plan
    from mpo.run_plan import RunRequest, read_spec

    request = RunRequest(
        read_spec(given.spec),
        given.pairs,
        given.model,
        given.out,
        given.eval_pairs,
        given.max_bad_rows,
        given.accept_weak,
        _stop_on_signals(),
        memory_here=None if given.accept_short_memory else _memory_here,
    )
    return _run_on_ranks(request) if is_launched() else run_plan(request)


def _run_on_ranks(request: "RunRequest") -> str | None:
    """The same as one of several processes: the first runs the plan, the others help where they can."""
    from mpo.leading import follow, lead
    from mpo.pipeline import run_plan
    from mpo.process_group import ProcessGroup

    with ProcessGroup.launched() as group:
        if group.number == 0:
            here = request.memory_here and partial(_memory_here, group.count, group.sharded)
            return run_plan(replace(request, perform=partial(lead, group), memory_here=here))
        try:
            follow(group, request.stop.is_set)
        except MPOError as error:
            raise StageFailed(f"rank {group.number}: {error.detail}", code=error.code) from error
        return None


def _memory_here(ranks: int = 1, sharded: bool = False) -> tuple["Machine", int]:
    """What stages run on, and the memory of that in bytes: of a GPU, or of the whole machine."""
    import torch

    from mpo.estimates_machine import Machine

    if torch.cuda.is_available():
        return Machine("cuda", ranks, sharded), torch.cuda.get_device_properties(0).total_memory
    return Machine("cpu", ranks, sharded), machine_memory()


def _stop_on_signals() -> threading.Event:
    """Set by the first Ctrl-C or SIGTERM; the second one ends the process as usual."""
    stop = threading.Event()

    def ask(number: int, _frame: object) -> None:
        stop.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, ask)
    return stop


def _complain(text: str, status: int) -> int:
    print(f"mpo: {text}", file=sys.stderr)
    return status


if __name__ == "__main__":
    sys.exit(main())
