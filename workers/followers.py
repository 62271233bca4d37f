"""The other processes of a training on several ranks: forked by its child, in its group, and gone with it."""

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.context import ForkProcess
from threading import Thread

GRACE_SECONDS = 30.0
"""A child learns by itself that a follower is gone when it next needs it. NCCL may never tell."""

forking = multiprocessing.get_context("fork")
logger = logging.getLogger(__name__)


def start_followers(count: int, follow: Callable[[int], None]) -> None:
    """Ranks 1 … count - 1, each of which calls follow(number).

    To be called before this process has threads: a fork copies the locks that they hold. Should a follower
    fail, this process's group is killed in the end, though it may wait for the follower for ever.
    """
    followers = [forking.Process(target=follow, args=(number,)) for number in range(1, count)]
    for follower in followers:
        follower.start()
    if followers:
        Thread(target=_watch, args=(followers,), name="followers", daemon=True).start()


def _watch(followers: Sequence[ForkProcess]) -> None:
    left = {follower.sentinel: follower for follower in followers}
    while left:
        for sentinel in connection.wait(list(left)):
            assert isinstance(sentinel, int)
            follower = left.pop(sentinel)
            follower.join()
            if follower.exitcode:
                logger.error("a follower, process %s, ended with %s", follower.pid, follower.exitcode)
                time.sleep(GRACE_SECONDS)
                os.killpg(0, signal.SIGKILL)
