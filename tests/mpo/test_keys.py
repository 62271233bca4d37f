"""A key's text is put together from parts: it must be the canonical JSON of the whole."""

import hashlib

import pytest

from mpo.job_spec import JobSpec
from mpo.keys import canonical_json, result_config, stage_key
from mpo.plan import expand
from mpo.presets import SEEDS, reseeded
from mpo.training_config import TrainingConfig

PRESETS = ("mpo", "sft", "reward_model", "dpo", "ppo")


@pytest.mark.parametrize("preset", PRESETS)
def test_a_key_is_the_digest_of_one_canonical_object(preset: str) -> None:
    inputs = {"data": ("k" * 64, "easy"), "models": [("m" * 64, "model"), ("n" * 64, "ünïcode")]}
    for stage in expand(_spec(preset, 7), model="tiny", dataset="ds_1"):
        whole = {
            "kind": stage.kind,
            "revision": stage.config.revision,
            "config": result_config(stage.config),
            "inputs": inputs,
            "seed": 7,
        }
        assert stage_key(stage.config, inputs, 7) == hashlib.sha256(canonical_json(whole)).hexdigest()


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("seed", [0, 1, SEEDS - 1])
def test_only_the_seeds_of_a_preset_s_stages_depend_on_the_job_s(preset: str, seed: int) -> None:
    template = expand(_spec(preset, 3), model="tiny", dataset="ds_1")
    assert reseeded(template, seed) == expand(_spec(preset, seed), model="tiny", dataset="ds_1")


def test_what_is_recomputed_changes_no_key() -> None:
    for stage in expand(_spec("mpo", 7), model="tiny", dataset="ds_1"):
        if isinstance(stage.config, TrainingConfig):
            other = stage.config.model_copy(update={"gradient_checkpointing": True})
            assert stage_key(other, {}, 7) == stage_key(stage.config, {}, 7)


def test_precision_is_in_a_key_where_it_is_set() -> None:
    """So that jobs from before there was one keep their keys."""
    for stage in expand(_spec("mpo", 7), model="tiny", dataset="ds_1"):
        config = stage.config
        if not isinstance(config, TrainingConfig):
            continue
        assert "precision" not in result_config(config)
        others = [config.model_copy(update={"precision": precision}) for precision in ("fp32", "bf16")]
        keys = {stage_key(each, {}, 7) for each in (config, *others)}
        if config.kind == "evaluate":  # always fp32
            assert len(keys) == 1
        else:
            assert len(keys) == 3
            assert result_config(others[1]) == result_config(config) | {"precision": "bf16"}


def _spec(preset: str, seed: int) -> JobSpec:
    return JobSpec.model_validate({"method": {"type": preset}, "seed": seed})
