"""`python -m workers --slot cpu|gpu --concurrency N`: a Celery worker with N slots, and recovery."""

import argparse
import logging
import sys

from celery.signals import setup_logging, worker_shutdown

from core.doorbell import queue_name
from core.ids import new_id
from core.settings import settings, withhold_credentials


def main() -> int:
    """Run until SIGTERM: then running work checkpoints and goes back to the queue."""
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    parser.add_argument("--slot", choices=("cpu", "gpu"), required=True, help="class of runs to take")
    parser.add_argument("--concurrency", type=int, default=1, help="runs at a time (default 1)")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s %(message)s")
    settings()
    # Before the fork server starts, whose children must not be able to reach the database.
    withhold_credentials()

    from workers.celery_app import celery_app
    from workers.child import start_fork_server
    from workers.executor import Executor
    from workers.recovery import Recovery

    worker_id = new_id("worker")
    start_fork_server(arguments.slot)
    executor = Executor(arguments.slot, arguments.concurrency, worker_id)
    recovery = Recovery(worker_id, arguments.slot, arguments.concurrency)

    def stop(**_: object) -> None:
        executor.stop()
        recovery.stop()

    def keep_our_logging(**_: object) -> None:
        """A receiver of this signal is what keeps Celery from configuring the root logger."""

    setup_logging.connect(keep_our_logging, weak=False)
    worker_shutdown.connect(stop, weak=False)
    recovery.start()
    executor.start()
    # One thread hears the bell; the slots are the executor's, and work without the broker too.
    options = ["--pool=threads", "--concurrency=1", f"--queues={queue_name(arguments.slot)}"]
    quiet = ["--without-gossip", "--without-mingle", "--without-heartbeat", "--loglevel=WARNING"]
    celery_app.worker_main(["worker", f"--hostname={worker_id}@%h", *options, *quiet])
    return 0


if __name__ == "__main__":
    sys.exit(main())
