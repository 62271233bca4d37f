"""Imported first by the fork server: a signal to stop that is sent to all processes of a worker passes it by.

Who stops a whole group or unit (a shell, systemd) tells the worker, its children and this server at once. A
server that ended then would take every child for dead, before they have saved their checkpoints. It ends with
its worker: by its pipe, or the guard. Children are forked deaf, and hear again once they can save.
"""

import signal

signal.signal(signal.SIGTERM, signal.SIG_IGN)
