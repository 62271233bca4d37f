"""Bounds of settings, as the environment gives them."""

import pytest
from pydantic import ValidationError

from core.settings import Settings


@pytest.fixture(autouse=True)
def _deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATABASE_URL", "REDIS_URL", "STORE_URL"):
        monkeypatch.setenv(f"MPO_{name}", "nowhere://")
    monkeypatch.delenv("MPO_SAMPLER_SHARE", raising=False)


@pytest.mark.parametrize("share", ["0", "-0.5", "1.01", "nan", "half"])
def test_a_share_of_the_sampler_s_out_of_bounds_is_refused(
    monkeypatch: pytest.MonkeyPatch, share: str
) -> None:
    monkeypatch.setenv("MPO_SAMPLER_SHARE", share)
    with pytest.raises(ValidationError, match="sampler_share"):
        Settings()


@pytest.mark.parametrize(("share", "read"), [("1", 1.0), ("0.01", 0.01)])
def test_a_share_of_the_sampler_s_is_read(monkeypatch: pytest.MonkeyPatch, share: str, read: float) -> None:
    monkeypatch.setenv("MPO_SAMPLER_SHARE", share)
    assert Settings().sampler_share == read


def test_the_sampler_has_half_of_the_time_where_nothing_else_is_said() -> None:
    assert Settings().sampler_share == 0.5
