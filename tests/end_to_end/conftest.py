"""Two stacks side by side for a session of tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.running_stack import RunningStack, running_stack


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningStack]:
    """The stack that most tests use."""
    folder: Path = tmp_path_factory.mktemp("stack")
    with running_stack(folder / "one") as started:
        yield started
