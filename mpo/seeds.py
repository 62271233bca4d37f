"""Seeds that follow from a run's seed and a position: nothing random has a state to keep. Torch-free."""

import hashlib

import numpy as np


def row_seed(seed: int, *index: int) -> int:
    """The seed of one sequence or one order out of a run's seed: 64 bits, the same everywhere."""
    digest = hashlib.sha256(repr((seed, *index)).encode()).digest()
    return int.from_bytes(digest[:8], "big")


def permutation(count: int, *seed: int) -> list[int]:
    """A random order of 0 … count − 1 that depends on these seeds alone."""
    order: list[int] = np.random.default_rng(row_seed(*seed)).permutation(count).tolist()
    return order
