"""The protocol as a state machine, against a real Postgres.

MPO_SEQUENCES says how many sequences run, MPO_SEED which ones.
"""

import os
from collections.abc import Callable
from typing import Any

import hypothesis
import psycopg
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.protocol.machine import Protocol

SEQUENCES = int(os.environ.get("MPO_SEQUENCES", "100"))
SEED = int(os.environ.get("MPO_SEED", "0"))
STEPS = 15 if SEQUENCES <= 100 else 20
OF_A_PART = 100
"""So that several processes share the sequences; each part is a seed's."""


@pytest.mark.parametrize("seed", range(SEED, SEED + max(1, SEQUENCES // OF_A_PART)))
def test_any_sequence_keeps_the_protocol(
    admin: "psycopg.Connection[Any]", seed: int, record_property: Callable[[str, object], None]
) -> None:
    check(admin, min(SEQUENCES, OF_A_PART), seed)
    record_property("sequences", Protocol.sequences)


def check(admin: "psycopg.Connection[Any]", sequences: int, seed: int, steps: int = STEPS) -> None:
    """Raises what a sequence broke."""
    Protocol.admin, Protocol.sequences = admin, 0
    hypothesis.seed(seed)(Protocol)
    run_state_machine_as_test(
        Protocol,
        settings=settings(
            max_examples=sequences,
            stateful_step_count=steps,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )
