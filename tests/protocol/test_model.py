"""The protocol as a state machine, against a real Postgres: MPO_SEQUENCES sequences (`make chaos` does 2,000)."""

import os
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.machine import Protocol
from tests.protocol.world import World
from workers import recovery

SEQUENCES = int(os.environ.get("MPO_SEQUENCES", "100"))
STEPS = 25


def test_any_sequence_keeps_the_protocol(
    admin: "psycopg.Connection[Any]", monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check(admin, monkeypatch, SEQUENCES)
    with capsys.disabled():
        print(f"\n{Protocol.sequences} sequences of at most {STEPS} steps kept the protocol")


def check(
    admin: "psycopg.Connection[Any]", monkeypatch: pytest.MonkeyPatch, sequences: int, shrink: bool = True
) -> None:
    """Raises what a sequence broke."""

    def clock_of(world: World) -> None:
        monkeypatch.setattr(recovery, "time", world.clock)

    Protocol.admin, Protocol.clock_of, Protocol.sequences = admin, staticmethod(clock_of), 0
    phases = [Phase.generate, *([Phase.shrink] if shrink else [])]
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=sequences <= 100,
            phases=phases,
            suppress_health_check=list(HealthCheck),
        ),
    )
