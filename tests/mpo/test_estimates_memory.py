"""Estimated memory: its pieces against what a model keeps, and what it says of settings."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mpo import blocked_attention
from mpo.batches import GROUP_BATCHES, LOGITS_AT_ONCE
from mpo.blocked_attention import blocks_of
from mpo.config import DPOStage, EvaluateStage, PPOStage, RewardModelStage, ScoreStage, SFTStage
from mpo.estimates_excess import told_of_padding
from mpo.estimates_fit import nearest_fit
from mpo.estimates_machine import Machine
from mpo.estimates_memory import NUMBER, stage_memory
from mpo.estimates_networks import LAYERS_PUT_TOGETHER
from mpo.estimates_passes import LOGITS_AT_ONCE as ASSUMED_LOGITS
from mpo.estimates_passes import (
    LOGITS_TRAINED,
    MEAN_KEYS,
    PACKED_TOKENS,
    PPO_TOKENS,
    QUERIES_A_BLOCK,
    TRL_ROWS_AT_ONCE,
    Pass,
    kept_numbers,
    seen_keys,
    training_pass,
)
from mpo.estimates_shape import ModelShape, read_shape
from mpo.estimates_work import BATCHES_SORTED, Longest, RowTokens
from mpo.logprobs import token_logprobs
from mpo.packed_models import pack_where_exact, packed_logits, packed_states
from mpo.packed_rows import TOKENS_AT_ONCE, Family, PackedRow, narrowed
from mpo.plan import PlannedStage, Source
from mpo.ppo import rollouts
from mpo.precision import set_precision
from mpo.recomputation import recompute_layers
from mpo.training_config import LoRAConfig, Precision, TrainingConfig
from mpo.trl_engine import MICRO_BATCH_ROWS

SHAPE = ModelShape(
    50_000_000, {f"layers.{i}.q_proj.weight": (512, 512) for i in range(8)}, 8, 512, 1408, 256, 16_000, 512
)
AT = Longest(200, 100, RowTokens(180, 60, 50))
PROMPT, CHOSEN, REJECTED, FAMILIES = 40, 20, 12, 6
STAGES: list[TrainingConfig] = [SFTStage(), RewardModelStage(), DPOStage(), PPOStage()]


def planned(config: Any) -> PlannedStage:
    roles = ("policy", "reference", "reward_model") if config.kind == "ppo" else ()
    return PlannedStage(config.kind, config, {role: (Source.model(role),) for role in roles}, 0)


def memory(
    config: Any,
    shape: ModelShape = SHAPE,
    at: Longest = AT,
    device: str = "cpu",
    ranks: int = 1,
    sharded: bool = False,
) -> int:
    return stage_memory(planned(config), shape, at, Machine(device, ranks, sharded))


def changed(config: TrainingConfig, **changes: Any) -> TrainingConfig:
    return type(config).model_validate(config.model_dump() | changes)


@pytest.mark.parametrize("stage", ["dpo", "reward_model"])
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_is_kept_is_what_a_model_keeps(
    stage: str, checkpointing: bool, precision: Precision, tmp_path: Path
) -> None:
    model, shape = llama(tmp_path)
    set_precision(model, precision)
    pack_where_exact(model, pytest.fail)
    families = [Family([5] * PROMPT, [[6] * CHOSEN, [7] * REJECTED]) for _ in range(FAMILIES)]
    row = PackedRow.of(families)
    if checkpointing:
        recompute_layers(model, pytest.fail)
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        if stage == "dpo":
            token_logprobs(packed_logits(model, row), row.targets)
        else:
            packed_states(model, row, row.ends)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    found = sum(t.untyped_storage().nbytes() for at, t in kept.items() if at not in weights) // 4
    config: Any = {"dpo": DPOStage, "reward_model": RewardModelStage}[stage](
        gradient_checkpointing=checkpointing, precision=precision
    )
    tokens, responses = FAMILIES * (PROMPT + CHOSEN + REJECTED), FAMILIES * (CHOSEN + REJECTED)
    again, masked = FAMILIES * (PROMPT + REJECTED), FAMILIES * REJECTED * (PROMPT + REJECTED)
    read = responses if stage == "dpo" else 2 * FAMILIES
    seen = sum(block.queries * block.keys for span in row.spans for block in blocks_of(span))
    places = row.before if stage == "dpo" else row.ends
    asked = narrowed(row.spans, sorted(places.tolist()))
    at_end = sum(block.queries * block.keys for span in asked for block in blocks_of(span))
    masked_at_end = sum(span.queries * span.keys for span in asked if span.queries > 1)
    a_pass = Pass(
        tokens, read, again, masked=masked, seen=seen, seen_at_end=at_end, masked_at_end=masked_at_end
    )
    expected = kept_numbers(a_pass, shape, config)
    if checkpointing:
        # A whole layer is held while it is computed again; from the start only the last one's numbers are.
        plain = config.model_copy(update={"gradient_checkpointing": False})
        everywhere = replace(a_pass, read=tokens, seen_at_end=seen, masked_at_end=masked)
        expected -= kept_numbers(everywhere, shape, plain) - kept_numbers(a_pass, shape, plain)
    if stage == "dpo":
        expected += responses * shape.vocabulary
        if precision == "bf16":
            expected += shape.vocabulary * shape.width / 2
    assert expected == pytest.approx(found, rel=0.06 if precision == "bf16" else 0.05)


def llama(folder: Path) -> tuple[Any, ModelShape]:
    """A model in which no two widths are alike."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=97,
        hidden_size=48,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model, read_shape(folder)


def test_bounds_are_those_of_the_engine() -> None:
    assert PACKED_TOKENS == TOKENS_AT_ONCE
    assert PPO_TOKENS == rollouts.TOKENS_AT_ONCE
    assert ASSUMED_LOGITS == LOGITS_AT_ONCE
    assert BATCHES_SORTED == GROUP_BATCHES
    assert TRL_ROWS_AT_ONCE == MICRO_BATCH_ROWS
    assert LOGITS_TRAINED == 3
    assert (QUERIES_A_BLOCK, MEAN_KEYS) == (blocked_attention.QUERIES, blocked_attention.MEAN_KEYS)


@pytest.mark.parametrize(("prompt", "chosen", "rejected"), [(40, 20, 12), (300, 90, 200), (96, 192, 500)])
def test_keys_that_queries_see_are_those_of_the_blocks(prompt: int, chosen: int, rejected: int) -> None:
    row = PackedRow.of([Family([5] * prompt, [[6] * chosen, [7] * rejected])])
    seen = seen_keys(prompt + chosen) + seen_keys(rejected, prompt)
    # Blocks are whole tokens long.
    blocks = [block for span in row.spans for block in blocks_of(span)]
    assert seen == pytest.approx(sum(block.queries * block.keys for block in blocks), rel=1e-3)


def test_attention_keeps_its_weights_only_where_they_are_few() -> None:
    short, long = (training_pass(DPOStage(batch_pairs=1), SHAPE, Longest(n, n), "cpu") for n in (100, 2_000))
    assert short.attends_by_blocks("cpu")
    assert not short.attends_by_blocks("cuda")
    assert not long.attends_by_blocks("cpu")


def test_a_pass_holds_what_passes_of_packed_rows_hold() -> None:
    wide = training_pass(DPOStage(), SHAPE, AT, "cpu")
    assert wide.tokens == 2**11
    assert wide.logits == pytest.approx(2**11 * 110 / 290)
    assert training_pass(DPOStage(), SHAPE, AT, "cuda").tokens == 16 * 290
    assert training_pass(DPOStage(batch_pairs=2), SHAPE, AT, "cpu").tokens == 2 * 290
    assert training_pass(DPOStage(batch_pairs=1), SHAPE, AT, "cpu").tokens == 400, "the longest row's"
    large = replace(SHAPE, vocabulary=2**18)
    assert training_pass(DPOStage(), large, AT, "cpu").tokens == 2**10, "a gibibyte of logits"
    assert training_pass(RewardModelStage(), large, AT, "cpu").tokens == 2**11, "a reward model has none"


def test_rows_are_padded_where_a_model_or_an_engine_wants_it() -> None:
    padded = training_pass(DPOStage(), replace(SHAPE, packs=False), AT, "cpu")
    assert padded.tokens == padded.logits == 2 * 16 * 300
    assert training_pass(DPOStage(engine="trl"), SHAPE, AT, "cpu").tokens == 2 * 16 * 300
    assert memory(DPOStage(engine="trl")) > memory(DPOStage())


@pytest.mark.parametrize("config", STAGES, ids=lambda config: str(config.kind))
def test_longer_texts_need_no_less_and_what_spares_memory_needs_less(config: TrainingConfig) -> None:
    grown = [memory(config, at=Longest(64 * n, 32 * n)) for n in (1, 2, 4, 8, 32)]
    assert grown == sorted(grown)
    assert grown[0] < grown[-1]
    assert memory(changed(config, gradient_checkpointing=True)) < memory(config)
    assert memory(changed(config, lora={"rank": 8})) < memory(config)
    assert memory(changed(config, lora={"rank": 8})) < memory(changed(config, lora={"rank": 512}))
    assert memory(config, device="cuda") != memory(config)


@pytest.mark.parametrize("config", STAGES, ids=lambda config: str(config.kind))
def test_bf16_needs_less_where_the_device_or_the_stage_asks_for_it(config: TrainingConfig) -> None:
    fp32, bf16 = (changed(config, precision=precision) for precision in ("fp32", "bf16"))
    for device in ("cpu", "cuda"):
        assert memory(bf16, device=device) < memory(fp32, device=device)
        assert memory(config, device=device) == memory(bf16 if device == "cuda" else fp32, device=device)


def test_what_was_not_counted_in_bf16_is_taken_to_be_no_less() -> None:
    padded = replace(SHAPE, packs=False)
    for config, shape in ((DPOStage(engine="trl"), SHAPE), (DPOStage(), padded), (SFTStage(), padded)):
        assert memory(changed(config, precision="bf16"), shape) >= memory(config, shape)
    score = ScoreStage(max_prompt_tokens=16, max_response_tokens=8)
    assert memory(changed(score, precision="bf16")) == memory(score)


@pytest.mark.parametrize("config", STAGES, ids=lambda config: str(config.kind))
def test_ranks_take_shares_of_a_step_and_add_up_on_a_cpu(config: TrainingConfig) -> None:
    if isinstance(config, PPOStage):
        config = changed(config, rollout_prompts=32)  # whose steps are a micro-batch each, which is shared
        share = changed(config, rollout_prompts=16)
    else:
        share = changed(config, batch_pairs=config.batch_pairs // 2)
    assert memory(config, ranks=2) == 2 * memory(share)
    assert memory(config, device="cuda", ranks=2) == memory(share, device="cuda")


@pytest.mark.parametrize("config", STAGES[:3], ids=lambda config: str(config.kind))
def test_in_shards_a_gpu_holds_its_part_and_what_is_put_together(config: TrainingConfig) -> None:
    shape = replace(SHAPE, parameters=10**9)
    whole = memory(config, shape, device="cuda", ranks=4)
    layers = 8 * 512 * 512
    together = shape.parameters - layers + LAYERS_PUT_TOGETHER * 512 * 512
    saved = 4 * shape.parameters - (shape.parameters + 2 * together)
    assert whole - memory(config, shape, device="cuda", ranks=4, sharded=True) == NUMBER * saved


@pytest.mark.parametrize("config", STAGES[:3], ids=lambda config: str(config.kind))
def test_however_many_shards_the_model_is_whole_once(config: TrainingConfig) -> None:
    in_layers = {f"layers.{i}.q_proj.weight": (2**13, 2**13) for i in range(64)}
    shape = replace(SHAPE, parameters=64 * 2**26, matrices=in_layers, layers=64)
    gpu, host = (memory(config, shape, device=d, ranks=64, sharded=True) for d in ("cuda", "cpu"))
    assert NUMBER * shape.parameters < gpu < memory(config, shape, device="cuda", ranks=64) / 2
    # The model that was loaded waits beside the copy that was made of it.
    assert host > 64 * NUMBER * 2 * shape.parameters


def test_shards_and_ranks_are_nothing_to_what_has_none() -> None:
    for config in (PPOStage(), *(changed(stage, lora={"rank": 8}) for stage in STAGES)):
        for device in ("cpu", "cuda"):
            whole = memory(config, device=device, ranks=4)
            assert memory(config, device=device, ranks=4, sharded=True) == whole
    alone = [RewardModelStage(engine="trl"), DPOStage(engine="trl"), ScoreStage(), EvaluateStage()]
    for config in alone:
        assert memory(config, ranks=4, sharded=True) == memory(config)
    assert memory(SFTStage(), sharded=True) == memory(SFTStage()), "one rank holds all"


def limits(config: TrainingConfig) -> Iterator[int]:
    """From just below what it needs down to nearly nothing."""
    for share in (0.999, 0.9, 0.8, 0.7, 0.6, 0.5):
        yield int(share * memory(config))


@pytest.mark.parametrize("config", STAGES, ids=lambda config: str(config.kind))
def test_the_nearest_setting_fits_and_says_what_it_comes_to(config: TrainingConfig) -> None:
    found = 0
    long = changed(config, max_prompt_tokens=512, max_response_tokens=256)
    for limit in limits(long):
        nearest = nearest_fit(long, memory, limit)
        if nearest is not None:
            found += 1
            changes, needed = nearest
            assert memory(changed(long, **changes)) == needed <= limit
    assert found
    assert nearest_fit(long, memory, 2**20) is None


def test_what_changes_no_result_is_proposed_first() -> None:
    config = SFTStage(max_prompt_tokens=512, max_response_tokens=256)
    nearest = nearest_fit(config, memory, memory(config) - 1)
    assert nearest is not None
    assert nearest[0] == {"gradient_checkpointing": True}
    checkpointed = changed(config, gradient_checkpointing=True)
    tighter = nearest_fit(config, memory, memory(changed(checkpointed, lora=LoRAConfig().model_dump())))
    assert tighter is not None
    assert tighter[0]["lora"]["rank"] == LoRAConfig().rank


def test_what_padded_rows_would_need_is_told_and_refuses_nothing() -> None:
    [told] = told_of_padding(3 << 30, 2 << 30)
    assert "padded rows, this stage needs 3.00 GiB of memory, and trainings have 2.00 GiB here" in told
    assert told_of_padding(2 << 30, 2 << 30) == []
    assert told_of_padding(3 << 30, 0) == [], "no limit is known"
