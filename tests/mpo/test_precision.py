"""Mixed precision: close to fp32 and not it, over weights and an optimizer that stay in fp32."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from mpo.checkpoints import load_state
from mpo.config import DPOStage, PPOStage, RewardModelStage, ScoreStage, SFTStage
from mpo.dpo.objective import logprobs_of_pairs
from mpo.errors import StageInterrupted
from mpo.generation import SamplingConfig, sample
from mpo.packed_models import pack_where_exact, reads_packed_rows
from mpo.packed_rows import TOKENS_AT_ONCE
from mpo.precision import in_fp32, resolves_to_bf16, set_precision
from mpo.reward_model.score import pair_scores
from mpo.rounding import share_apart
from mpo.stages import run_stage
from mpo.training_config import LoRAConfig, Precision, TrainingConfig
from tests.mpo.test_packed_models import EXACT, PAD, PAIRS, gradients, model_of
from tests.mpo.tiny import (
    RecordingReporter,
    task_of,
    tiny_llama,
    write_pairs,
    write_policy,
    write_reward_model,
)

COARSE = 3e-2
"""Of the largest number: what some roundings to the 8 significant bits of bf16 come to."""

SEEN_ALIKE = 5e-3
"""Of log-probabilities. Attention that sees not its prompt, or later tokens, is four times as far off."""

LORA = LoRAConfig(rank=4, alpha=8)
SHARED: dict[str, Any] = {"max_prompt_tokens": 16, "max_response_tokens": 8, "learning_rate": 3e-3}
ROLLOUTS: dict[str, Any] = {**SHARED, "rollout_prompts": 8, "max_new_tokens": 6}
STAGES: dict[str, TrainingConfig] = {
    "sft": SFTStage(**SHARED),
    "reward_model": RewardModelStage(**SHARED),
    "reward_model, trl": RewardModelStage(**SHARED, engine="trl"),
    "dpo": DPOStage(**SHARED),
    "dpo, LoRA": DPOStage(**SHARED, lora=LORA),
    "dpo, trl": DPOStage(**SHARED, engine="trl"),
    "ppo": PPOStage(**ROLLOUTS),
    "ppo, LoRA": PPOStage(**ROLLOUTS, lora=LORA),
    "ppo, shared trunk": PPOStage(**ROLLOUTS, critic="shared_trunk"),
}


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy, a reward model and pairs."""
    folder = tmp_path_factory.mktemp("precision")
    write_reward_model(folder / "scores", write_policy(folder / "base"))
    write_pairs(folder / "pairs.parquet")
    return folder


def run(
    config: Any, precision: Precision, house: Path, out: Path, reporter: Any = None, resume: Any = None
) -> RecordingReporter:
    base = house / "base"
    roles = {
        "sft": {"policy": base},
        "reward_model": {"backbone": base},
        "dpo": {"policy": base, "reference": base},
        "ppo": {"policy": base, "reference": base, "reward_model": house / "scores"},
    }[config.kind]
    data = {"prompts" if config.kind == "ppo" else "data": house / "pairs.parquet"}
    reporter = reporter or RecordingReporter()
    config = config.model_copy(update={"precision": precision})
    run_stage(task_of(config, out, {**roles, **data}, resume=resume), reporter)
    assert reporter.warnings == []
    return reporter  # type: ignore[no-any-return]


def trained(out: Path) -> bytes:
    return (out / "model" / "model.safetensors").read_bytes()


def tensors(state: Any) -> Iterator[Tensor]:
    """All tensors of a checkpoint."""
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for part in state.values() if isinstance(state, dict) else state:
            yield from tensors(part)


@pytest.mark.parametrize("supported", [False, True])
def test_auto_is_bf16_on_a_gpu_that_multiplies_it(supported: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def is_supported(*, including_emulation: bool) -> bool:
        asked.append(including_emulation)
        return supported

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", is_supported)
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert resolves_to_bf16("auto", gpu) is supported
    assert asked == [False], "an older GPU's emulation is slower than its fp32"
    assert not resolves_to_bf16("auto", cpu)
    assert resolves_to_bf16("bf16", cpu)
    assert resolves_to_bf16("bf16", gpu)
    assert not resolves_to_bf16("fp32", gpu)


@pytest.mark.parametrize("name", STAGES)
def test_bf16_is_near_fp32_and_not_it_and_auto_on_a_cpu_is_fp32(
    name: str, house: Path, tmp_path: Path
) -> None:
    found = {p: run(STAGES[name], p, house, tmp_path / p).steps for p in ("fp32", "auto", "bf16")}
    assert trained(tmp_path / "auto") == trained(tmp_path / "fp32")
    assert trained(tmp_path / "bf16") != trained(tmp_path / "fp32")
    weights = load_file(tmp_path / "bf16" / "model" / "model.safetensors")
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert any(bool((weight != weight.bfloat16()).any()) for weight in weights.values())
    # DPO's first loss is log 2 in either; PPO's second comes from other episodes.
    at = 1 if name.startswith("dpo") else 0
    loss, expected = (found[p][at][2]["loss"] for p in ("bf16", "fp32"))
    assert loss == pytest.approx(expected, rel=2e-2 if name.startswith("ppo") else 1e-2)
    assert loss != expected


@pytest.mark.parametrize("name", ["sft", "reward_model", "dpo", "ppo", "ppo, LoRA"])
def test_a_killed_training_goes_on_to_the_same_bits_from_numbers_in_fp32(
    name: str, house: Path, tmp_path: Path
) -> None:
    whole = run(STAGES[name], "bf16", house, tmp_path / "whole")
    first = RecordingReporter(tmp_path / "kept", stop_after=1)
    with pytest.raises(StageInterrupted):
        run(STAGES[name], "bf16", house, tmp_path / "first", first)
    kept = load_state(tmp_path / "kept" / "state.safetensors")
    assert {tensor.dtype for tensor in tensors(kept)} == {torch.float32}
    assert any("optimizer" in str(key) or "trained" in str(key) for key in kept)
    rest = run(STAGES[name], "bf16", house, tmp_path / "rest", resume=tmp_path / "kept")
    assert losses(first) + losses(rest) == losses(whole)
    assert trained(tmp_path / "rest") == trained(tmp_path / "whole")


def losses(reporter: RecordingReporter) -> list[float]:
    return [metrics["loss"] for _, _, metrics in reporter.steps]


@pytest.mark.parametrize("name", ["reward_model", "dpo"])
def test_many_steps_come_to_nearly_the_same_loss(name: str, house: Path, tmp_path: Path) -> None:
    config = STAGES[name].model_copy(update={"epochs": 10, "learning_rate": 2e-3})
    found, expected = (losses(run(config, p, house, tmp_path / p)) for p in ("bf16", "fp32"))
    assert found[-1] < 0.7 * found[0]
    assert found[-1] == pytest.approx(expected[-1], rel=0.05)


@pytest.mark.parametrize("name", ["dpo", "dpo, LoRA", "dpo, trl"])
@pytest.mark.parametrize("tokens", [2**11, 40], ids=["passes alike", "passes unlike the reference's"])
def test_dpo_begins_at_log_2(
    name: str, tokens: int, house: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(TOKENS_AT_ONCE, "cpu", tokens)
    config = STAGES[name].model_copy(update={"batch_pairs": 5})
    assert losses(run(config, "bf16", house, tmp_path))[0] == pytest.approx(math.log(2), abs=1e-3)


@pytest.mark.parametrize("name", ["ppo", "ppo, LoRA", "ppo, shared trunk"])
def test_ppo_s_first_ratios_are_exactly_1_and_its_kl_exactly_0(
    name: str, house: Path, tmp_path: Path
) -> None:
    config = STAGES[name].model_copy(update={"epochs": 1, "mini_batches": 1})
    steps = run(config, "bf16", house, tmp_path).steps
    assert len(steps) > 1
    assert {metrics["ratio_max"] for _, _, metrics in steps} == {1.0}
    assert steps[0][2]["kl"] == 0.0
    assert steps[-1][2]["kl"] != 0.0


def test_scores_are_near_fp32_s_and_finer_than_bf16(house: Path, tmp_path: Path) -> None:
    config = ScoreStage(scheme="in_sample", max_prompt_tokens=16, max_response_tokens=8)
    rewards = {}
    for precision in ("fp32", "auto", "bf16"):
        reporter = RecordingReporter()
        given = config.model_copy(update={"precision": precision})
        inputs: dict[str, Any] = {"reward_models": [house / "scores"], "data": house / "pairs.parquet"}
        run_stage(task_of(given, tmp_path / precision, inputs), reporter)
        table = pq.read_table(tmp_path / precision / "scores.parquet")
        rewards[precision] = torch.tensor(table["reward_chosen"].to_pylist())
    assert torch.equal(rewards["auto"], rewards["fp32"])
    assert not torch.equal(rewards["bf16"], rewards["fp32"])
    assert_close(rewards["bf16"], rewards["fp32"], rtol=0, atol=COARSE * float(rewards["fp32"].abs().max()))
    assert not torch.equal(rewards["bf16"], rewards["bf16"].bfloat16().float()), "the head is in fp32"


def test_responses_are_sampled_in_fp32() -> None:
    model, prompts = tiny_llama(50), [[1, 5, 9], [1, 7]]
    config = SamplingConfig(8, frozenset({2}), PAD)
    expected = sample(model, prompts, config, [3, 4])
    set_precision(model, "bf16")
    assert sample(model, prompts, config, [3, 4]) == expected


def apart(found: Tensor, expected: Tensor) -> float:
    """As a share of the largest number."""
    return share_apart(found.detach(), expected.detach())


@pytest.mark.parametrize("name", EXACT)
def test_packed_rows_agree_with_plain_ones_and_the_probe_is_in_fp32(name: str) -> None:
    # Weights so large that it matters what attention sees.
    config = type(EXACT[name]).from_dict({**EXACT[name].to_dict(), "initializer_range": 0.2})
    model = model_of(config, AutoModelForCausalLM)
    expected = torch.stack(logprobs_of_pairs(model, PAIRS, PAD))
    set_precision(model, "bf16")
    plain = torch.stack(logprobs_of_pairs(model, PAIRS, PAD))
    wanted = gradients(model, (plain[0] - 2 * plain[1]).sum())
    pack_where_exact(model, pytest.fail)  # in bf16 it would find numbers too far apart
    assert reads_packed_rows(model)
    packed = torch.stack(logprobs_of_pairs(model, PAIRS, PAD))
    given = gradients(model, (packed[0] - 2 * packed[1]).sum())
    assert not torch.equal(packed, expected)
    assert apart(packed, plain) < SEEN_ALIKE
    assert apart(plain, expected) < SEEN_ALIKE
    assert given.keys() == wanted.keys()
    largest = max(float(gradient.abs().max()) for gradient in wanted.values())
    for weight, gradient in wanted.items():
        assert given[weight].dtype == torch.float32
        assert float((given[weight] - gradient).abs().max()) < COARSE * largest, weight


def test_packed_rewards_agree_with_plain_ones() -> None:
    config = type(EXACT["llama"]).from_dict({**EXACT["llama"].to_dict(), "num_labels": 1})
    model = model_of(config, AutoModelForSequenceClassification)
    exact = pair_scores(model, PAIRS, PAD)
    set_precision(model, "bf16")
    plain = pair_scores(model, PAIRS, PAD)
    pack_where_exact(model, pytest.fail)
    packed = pair_scores(model, PAIRS, PAD)
    assert packed.dtype == torch.float32
    assert not torch.equal(packed, exact)
    assert apart(packed, plain) < COARSE
    with in_fp32(model):
        assert apart(pair_scores(model, PAIRS, PAD), exact) < 1e-5
    assert torch.equal(pair_scores(model, PAIRS, PAD), packed), "and is in bf16 again"
