import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Models this small are faster on one thread, and busy neighbours slow two down."""
    torch.set_num_threads(1)
