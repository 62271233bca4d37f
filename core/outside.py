"""Requests to addresses that a client names: only where they may go, to the very host that was checked.

A name is resolved once, and what it resolves to is connected to: a second answer of the name service cannot
lead elsewhere. Redirects are refused. Answers are bounded in size and time.
"""

import ipaddress
import json
import socket
import ssl
import time
from collections.abc import Collection
from functools import cache
from typing import Any
from urllib.parse import SplitResult, urlsplit

import httpx

from mpo.errors import MPOError

MOST_BYTES = 1 << 20
PORTS = {"http": 80, "https": 443}


class AddressRefused(MPOError):
    """This service does not send requests to this address."""

    code = "address_refused"


class NoUsableAnswer(Exception):
    """The other side is away, too slow, or says something else than was asked for."""


def check_address(url: str, allowed: Collection[str]) -> SplitResult:
    """The parts of an address that may be asked. Raises AddressRefused; resolves nothing yet.

    allowed: hosts, each with or without a port, that may be private too.
    """
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise AddressRefused(f"This is no address: {error}") from error
    if parts.scheme not in PORTS or not parts.hostname:
        raise AddressRefused("An address should begin with http:// or https:// and name a host")
    if parts.username or parts.password:
        raise AddressRefused("An address should hold no name and no password")
    if parts.query or parts.fragment:
        raise AddressRefused("An address should end with its path")
    if _is_number(parts.hostname) and not _is_allowed(parts, port, allowed):
        _check_public(parts.hostname, parts.hostname)
    return parts


def post_json(
    url: str, body: object, *, allowed: Collection[str], seconds: float, key: str | None = None
) -> Any:
    """The JSON that an address answers. Raises AddressRefused, NoUsableAnswer."""
    parts = check_address(url, allowed)
    port = parts.port or PORTS[parts.scheme]
    address = _resolve(parts, port, allowed)
    literal = f"[{address}]" if ":" in address else address
    headers = {"Host": parts.netloc, "Content-Type": "application/json", "Accept": "application/json"}
    if key is not None:
        headers["Authorization"] = f"Bearer {key}"
    target = f"{parts.scheme}://{literal}:{port}{parts.path}"
    deadline = time.monotonic() + seconds
    try:
        with (
            # No proxy of the environment: it would resolve the name anew.
            httpx.Client(timeout=seconds, trust_env=False, verify=_certificates()) as client,
            client.stream(
                "POST",
                target,
                content=json.dumps(body).encode(),
                headers=headers,
                extensions={"sni_hostname": parts.hostname},
            ) as answer,
        ):
            if answer.status_code != httpx.codes.OK:
                raise NoUsableAnswer(f"status {answer.status_code}")
            return json.loads(_read(answer, deadline))
    except (httpx.HTTPError, ValueError, RecursionError) as error:
        raise NoUsableAnswer(type(error).__name__) from error


@cache
def _certificates() -> ssl.SSLContext:
    """Read once: it takes longer than a short answer does."""
    return httpx.create_ssl_context(trust_env=False)


def _read(answer: httpx.Response, deadline: float) -> bytes:
    content = bytearray()
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > MOST_BYTES:
            raise NoUsableAnswer("the answer is too long")
        # A server that sends a byte now and then never exceeds the time between two of them.
        if time.monotonic() > deadline:
            raise NoUsableAnswer("the answer takes too long")
    return bytes(content)


def _resolve(parts: SplitResult, port: int, allowed: Collection[str]) -> str:
    host = parts.hostname or ""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise NoUsableAnswer(f"{host} is not known") from error
    addresses = [str(info[4][0]) for info in found]
    if not _is_allowed(parts, parts.port, allowed):
        for address in addresses:
            _check_public(address, host)
    return addresses[0]


def _check_public(address: str, host: str) -> None:
    where = ipaddress.ip_address(address.partition("%")[0])
    inner = getattr(where, "ipv4_mapped", None) or where
    if not inner.is_global or inner.is_multicast:
        raise AddressRefused(
            f"{host} is in a private network: who runs this service may allow it (MPO_JUDGE_HOSTS)"
        )


def _is_allowed(parts: SplitResult, port: int | None, allowed: Collection[str]) -> bool:
    host = (parts.hostname or "").lower()
    return host in allowed or f"{host}:{port or PORTS[parts.scheme]}" in allowed


def _is_number(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
