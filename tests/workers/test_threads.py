from pathlib import Path

import pytest

from tests.mpo.tiny import write_pairs, write_policy
from workers import threads
from workers.threads import threads_for


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_policy(tmp_path_factory.mktemp("policy"))


@pytest.mark.parametrize("given", [0, 2])
def test_a_small_model_is_computed_by_one_thread(policy: Path, given: int) -> None:
    assert threads_for(given, [policy]) == 1


@pytest.mark.parametrize("given", [0, 2])
def test_a_large_one_by_those_that_are_given(
    policy: Path, given: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(threads, "SMALL", 1000)
    assert threads_for(given, [policy]) == given


def test_what_is_no_model_says_nothing(policy: Path, tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.parquet", 2)
    assert threads_for(2, [pairs]) == 2
    assert threads_for(2, [pairs, policy]) == 1
