"""What workers count reaches the database once, however often writing it failed before."""

from collections import defaultdict

import pytest
from sqlalchemy.exc import OperationalError

from core import tallies
from core.database import open_session

pytestmark = pytest.mark.usefixtures("settings_env")


@pytest.fixture(autouse=True)
def _nothing_counted_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tallies, "_counted", defaultdict(float))


def test_what_could_not_be_written_is_added_by_the_next_flush(settings_env: pytest.MonkeyPatch) -> None:
    tallies.count(tallies.CRASHES, slot="cpu")
    tallies.observe(tallies.CLAIM_SECONDS, 0.03, slot="cpu")
    with settings_env.context() as patch:
        patch.setattr(tallies, "open_transaction", _refuse)
        with pytest.raises(OperationalError):
            tallies.flush()
    tallies.count(tallies.CRASHES, slot="cpu")
    tallies.flush()
    tallies.count(tallies.CRASHES, slot="cpu")
    tallies.flush()
    tallies.flush()
    with open_session() as session:
        found = tallies.read(session, [tallies.CRASHES, f"{tallies.CLAIM_SECONDS}_bucket"])
    assert found == {
        (tallies.CRASHES, (("slot", "cpu"),)): 3.0,
        (f"{tallies.CLAIM_SECONDS}_bucket", (("le", "0.05"), ("slot", "cpu"))): 1.0,
    }


def test_a_duration_beyond_every_bound_is_counted_too() -> None:
    tallies.observe(tallies.STAGE_SECONDS, 1e9, kind="ppo")
    tallies.flush()
    with open_session() as session:
        ((_, labels),) = tallies.read(session, [f"{tallies.STAGE_SECONDS}_bucket"])
    assert dict(labels) == {"le": "+Inf", "kind": "ppo"}


def _refuse() -> None:
    raise OperationalError("INSERT", {}, ConnectionError())
