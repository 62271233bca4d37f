"""A stop that is asked for by a storm of signals still comes to its end."""

import signal
import subprocess
import sys

# Signals come from a thread of its own process as fast as they can, while the main thread waits.
_STORM = """
import os, signal, sys, threading
from workers.stop_signal import StopSignal
asked = StopSignal()
done = threading.Event()
def storm():
    while not done.is_set():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
thread = threading.Thread(target=storm)
thread.start()
asked.wait()
for _ in range(1000):
    threading.Event().wait(0)
done.set()
thread.join()
print("ended")
"""


def test_signals_while_it_stops_change_nothing() -> None:
    found = subprocess.run(
        [sys.executable, "-c", _STORM], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout) == (0, "ended\n"), found.stderr


def test_a_signal_before_anybody_waits_is_not_lost() -> None:
    code = "import os, signal; from workers.stop_signal import StopSignal; s = StopSignal(); "
    code += f"os.kill(os.getpid(), {int(signal.SIGTERM)}); s.wait(); print('ended')"
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (found.returncode, found.stdout) == (0, "ended\n"), found.stderr
