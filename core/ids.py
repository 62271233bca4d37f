"""Ids: a prefix that names the noun, and a ULID, so that ids sort by their time of making."""

import secrets
import time
from typing import Literal

Noun = Literal[
    "dataset", "job", "run", "artifact", "comparison", "evaluation", "api_key", "worker", "request"
]

PREFIXES: dict[Noun, str] = {
    "dataset": "ds",
    "job": "job",
    "run": "run",
    "artifact": "art",
    "comparison": "cmp",
    "evaluation": "eval",
    "api_key": "key",
    "worker": "wrk",
    "request": "req",
}
CROCKFORD = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


def new_id(noun: Noun) -> str:
    """`prefix_` and 26 characters of Crockford's base 32: 48 bits of milliseconds, 80 random ones."""
    value = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{PREFIXES[noun]}_" + "".join(CROCKFORD[value >> shift & 31] for shift in range(125, -1, -5))


def is_id(noun: Noun, text: str) -> bool:
    """Whether a text is written as an id of the noun."""
    prefix, _, ulid = text.rpartition("_")
    return prefix == PREFIXES[noun] and len(ulid) == 26 and set(ulid) <= set(CROCKFORD)
