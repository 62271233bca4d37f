"""`python -m workers --slot cpu|gpu --concurrency N`: a worker with N slots, and recovery."""

import argparse
import logging
import sys

from sqlalchemy.exc import SQLAlchemyError

from core import logs, tallies
from core.ids import new_id
from core.settings import settings, withhold_credentials
from workers.priority import give_way
from workers.stop_signal import StopSignal

logger = logging.getLogger(__name__)


def main() -> int:
    """Run until SIGTERM or SIGINT: then running work checkpoints and goes back to the queue."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--slot", choices=("cpu", "gpu"), required=True, help="class of runs to take")
    parser.add_argument("--concurrency", type=int, default=1, help="runs at a time (default 1)")
    arguments = parser.parse_args()
    stop = StopSignal()
    give_way(settings().worker_niceness)
    logs.configure(f"worker-{arguments.slot}")
    # Before the fork server starts, whose children must not be able to reach the database.
    withhold_credentials()
    _work(arguments.slot, arguments.concurrency, stop)
    return 0


def _work(slot: str, concurrency: int, stop: StopSignal) -> None:
    from workers.executor import Executor
    from workers.fork_server import start_fork_server, stop_fork_server
    from workers.hearing import Ear
    from workers.recovery import Recovery

    worker_id = new_id("worker")
    start_fork_server(slot)
    executor = Executor(slot, concurrency, worker_id)
    recovery = Recovery(worker_id, slot, concurrency)
    ear = Ear(worker_id, slot)
    recovery.start()
    executor.start()
    ear.open()
    logger.info("worker %s takes %s runs, %d at a time", worker_id, slot, concurrency)
    stop.wait()
    logger.info("worker %s was asked to stop", worker_id)
    executor.stop()
    ear.close()
    try:
        tallies.flush()
    except SQLAlchemyError as error:
        logger.info("figures are lost: the database is away: %s", type(error).__name__)
    # Last: its sign-off says that nothing of this worker is left.
    recovery.stop()
    stop_fork_server()


if __name__ == "__main__":
    sys.exit(main())
