"""Notices at once that the server is to stop: uvicorn tells the application only after its last request."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def told_of_a_stop(*on_stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT also make these calls in this event loop.

    What waits for an event would otherwise hold the stop for as long as it waits. Off the main thread, where
    no signal arrives, it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def handle(number: int, frame: FrameType | None) -> None:
        for call in on_stop:
            loop.call_soon_threadsafe(call)
        servers = before[signal.Signals(number)]
        if callable(servers):
            servers(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
