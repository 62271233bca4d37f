"""docs/reliability.md of a run."""

from collections.abc import Sequence

from experiments.chaos.campaign import Campaign
from experiments.chaos.settings import Settings


def page(done: Sequence[Campaign], settings: Settings, command: str) -> str:
    """All of it."""
    return ""
