"""Sizes of a run of the experiment: a minute that tests run, and the figures of docs/reliability.md."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

MODEL = "tiny"
PROMPT = "\n\nHuman: Where is my parcel?\n\nAssistant:"
GRACE_SECONDS = 5.0
"""Work is to go on within a lease and this much."""
LENGTHS = {"max_prompt_tokens": 64, "max_response_tokens": 48}
ALL_DATA = {"fraction": 0}


@dataclass(frozen=True)
class Settings:
    """storm_seconds: how long random faults rain. lone: faults that are measured one at a time.

    up_to_fault_seconds: the longest pause between two faults of the storm.
    """

    storm_seconds: float
    up_to_fault_seconds: float
    longest_freeze_seconds: float
    lone: tuple[str, ...]
    lease_seconds: float
    threads: int = 4
    quiet_seconds: float = 300.0
    environment: Mapping[str, str] = field(default_factory=dict)

    @property
    def recovery_bound_seconds(self) -> float:
        """What is promised."""
        return self.lease_seconds + GRACE_SECONDS


LONE = ("child-gpu", "child-cpu", "postgres", "worker-gpu", "worker-cpu", "everything")
FULL = Settings(
    storm_seconds=60, up_to_fault_seconds=4.0, longest_freeze_seconds=20.0, lone=LONE, lease_seconds=15.0
)
# A lease shorter than the freezes, so that the slice, too, has workers that come back too late. No niceness:
# it runs beside other tests, which would starve them.
SHORT = Settings(
    storm_seconds=15,
    up_to_fault_seconds=2.0,
    longest_freeze_seconds=4.0,
    lone=("child-gpu", "worker-cpu", "postgres"),
    lease_seconds=2.5,
    environment={"MPO_LEASE_SECONDS": "2.5", "MPO_RENEW_SECONDS": "0.5", "MPO_LOOK_SECONDS": "1"}
    | {"MPO_RECOVERY_SECONDS": "0.5", "MPO_WORKER_NICENESS": "0"},
)


def quick_method(kind: str) -> dict[str, Any]:
    """A method of one or two stages that train for a step."""
    steps = {"max_steps": 1, **LENGTHS}
    methods: dict[str, dict[str, Any]] = {
        "sft": {"type": "sft", "sft": steps},
        "dpo": {"type": "dpo", "sft": None, "dpo": steps, "evaluate": None},
        "reward_model": {"type": "reward_model", "reward_model": {**steps, "on_weak": "warn"}},
        "ppo": {
            "type": "ppo",
            "sft": None,
            "reward_model": {**steps, "on_weak": "warn"},
            "ppo": {"episodes": 8, "rollout_prompts": 4, "max_new_tokens": 8, "epochs": 1, "mini_batches": 1},
            "evaluate": None,
        },
    }
    return {**methods[kind], "hold_out": ALL_DATA}


def long_method(epochs: int, checkpoint_seconds: float) -> dict[str, Any]:
    """DPO that goes on until it is disturbed."""
    dpo = {"epochs": epochs, "batch_pairs": 8, "checkpoint_seconds": checkpoint_seconds, **LENGTHS}
    return {"type": "dpo", "sft": None, "dpo": dpo, "evaluate": None, "hold_out": ALL_DATA}
