from collections.abc import Iterator

import pytest
import torch

from tests.mpo.two_ranks import TwoRanks


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small are faster on one thread, and busy neighbours slow two down."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def rank_pairs() -> Iterator[TwoRanks]:
    """Gives pairs of ranks; started by the first test that asks for one."""
    started = TwoRanks()
    yield started
    started.close()
