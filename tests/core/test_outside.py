"""Which addresses the service asks, and what it bears of those that answer."""

import socket
from typing import Any

import pytest

from core.outside import MOST_BYTES, AddressRefused, NoUsableAnswer, check_address, post_json
from tests.judges import judging, says

HERE = frozenset({"127.0.0.1", "localhost"})
BODY = {"messages": [{"content": "?"}]}


@pytest.mark.parametrize(
    "url",
    [
        "ftp://example.org/v1",
        "file:///etc/passwd",
        "example.org/v1",
        "http://",
        "http://user:secret@example.org/v1",
        "http://example.org/v1?x=1",
        "http://example.org:99999/v1",
        "http://127.0.0.1/v1",
        "http://10.1.2.3/v1",
        "http://169.254.169.254/latest",
        "http://192.168.0.1:8000/v1",
        "http://0.0.0.0/v1",
        "http://[::1]/v1",
        "http://[fe80::1]/v1",
        "http://[::ffff:127.0.0.1]/v1",
        "http://224.0.0.1/v1",
    ],
)
def test_addresses_that_are_never_asked(url: str) -> None:
    with pytest.raises(AddressRefused):
        check_address(url, ())


@pytest.mark.parametrize(
    "url", ["https://example.org/v1", "http://8.8.8.8:8000/v1", "https://[2606:4700::1]/v1"]
)
def test_public_addresses_may_be_asked(url: str) -> None:
    assert check_address(url, ()).hostname


def test_a_private_host_may_be_allowed_by_name_and_by_port() -> None:
    assert check_address("http://127.0.0.1:8000/v1", {"127.0.0.1"}).port == 8000
    assert check_address("http://127.0.0.1:8000/v1", {"127.0.0.1:8000"}).port == 8000
    with pytest.raises(AddressRefused):
        check_address("http://127.0.0.1:8001/v1", {"127.0.0.1:8000"})


@pytest.mark.parametrize("addresses", [["10.0.0.7"], ["8.8.8.8", "127.0.0.1"], ["::1"]])
def test_a_public_name_that_leads_to_a_private_host_is_refused(
    monkeypatch: pytest.MonkeyPatch, addresses: list[str]
) -> None:
    def resolve(host: str, port: int, **kind: Any) -> list[Any]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr("socket.getaddrinfo", resolve)
    with pytest.raises(AddressRefused, match="MPO_JUDGE_HOSTS"):
        post_json("http://example.org/v1", BODY, allowed=(), seconds=1)


def test_the_name_stays_in_the_request_and_no_key_is_sent_unasked() -> None:
    seen: list[dict[str, Any]] = []
    with judging(lambda question: says("A"), seen) as url:
        named = url.replace("127.0.0.1", "localhost")
        post_json(f"{named}/chat/completions", BODY, allowed=HERE, seconds=5)
        post_json(f"{named}/chat/completions", BODY, allowed=HERE, seconds=5, key="secret")
    assert seen[0]["headers"]["Host"].startswith("localhost:")
    assert "Authorization" not in seen[0]["headers"]
    assert seen[1]["headers"]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (500, b"{}"),
        (301, b"{}"),
        (200, b"not json"),
        (200, b"[" * 100_000),
        (200, b'"' + b"x" * (MOST_BYTES + 1) + b'"'),
    ],
)
def test_what_is_no_answer(status: int, content: bytes) -> None:
    with judging(lambda question: (status, content)) as url, pytest.raises(NoUsableAnswer):
        post_json(f"{url}/chat/completions", BODY, allowed=HERE, seconds=5)


def test_a_host_that_is_away_or_unknown() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    for url in (f"http://127.0.0.1:{port}/v1", "http://nowhere.invalid/v1"):
        with pytest.raises(NoUsableAnswer):
            post_json(url, BODY, allowed=HERE, seconds=5)
