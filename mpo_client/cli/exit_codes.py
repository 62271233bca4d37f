"""How the command ends, for scripts; `docs/cli.md` tells the same."""

OK = 0
REFUSED = 1
"""The service refused, or what was asked for failed."""
USAGE = 2
"""The command was called wrongly: nothing was asked of the service, or nothing that it could read."""
UNREACHABLE = 3
"""No answer came."""
UNSUCCESSFUL = 4
"""A job, comparison or evaluation that was waited for failed or was cancelled."""
PAUSED = 5
"""A job that was waited for has paused, and waits for a person."""
INTERRUPTED = 130
"""Ctrl-C; what was waited for goes on."""
