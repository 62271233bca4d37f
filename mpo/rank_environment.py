"""What the environment says of ranks: the one place of the library that reads it. Torch-free."""

import os
import sys

from mpo.errors import InvalidSpec


def is_launched() -> bool:
    """Whether torchrun, or a launcher that speaks like it, started this process as one of several.

    Raises InvalidSpec where they are of several machines.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", count))
    if here < count:
        raise InvalidSpec(f"{count} processes were started, {here} of them here: all must be on one machine")
    return count > 1


def is_sharding_asked() -> bool:
    """Whether MPO_SHARDED says that weights in training are to be in shards."""
    return os.environ.get("MPO_SHARDED", "").lower() in {"1", "true"}


def listen_on_this_machine_alone() -> None:
    """Else gloo listens on the address that the machine's name stands for."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo0" if sys.platform == "darwin" else "lo")
