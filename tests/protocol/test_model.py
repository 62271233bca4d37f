"""The protocol as a state machine, against a real Postgres; MPO_SEQUENCES says how many sequences run."""

import os
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.machine import Protocol

SEQUENCES = int(os.environ.get("MPO_SEQUENCES", "100"))
STEPS = 15 if SEQUENCES <= 100 else 25


def test_any_sequence_keeps_the_protocol(
    admin: "psycopg.Connection[Any]", capsys: pytest.CaptureFixture[str]
) -> None:
    check(admin, SEQUENCES)
    with capsys.disabled():
        print(f"\n{Protocol.sequences} sequences of at most {STEPS} steps kept the protocol")


def check(admin: "psycopg.Connection[Any]", sequences: int, shrink: bool = False) -> None:
    """Raises what a sequence broke."""
    Protocol.admin, Protocol.sequences = admin, 0
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
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
