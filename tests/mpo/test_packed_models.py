import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from torch.testing import assert_close
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.models.bloom import BloomConfig
from transformers.models.gemma import GemmaConfig
from transformers.models.gemma3 import Gemma3TextConfig
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mamba import MambaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.mpt import MptConfig
from transformers.models.nemotron import NemotronConfig
from transformers.models.olmo import OlmoConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen2_moe import Qwen2MoeConfig
from transformers.models.qwen3 import Qwen3Config

from mpo.dpo.objective import logprobs_of_pairs
from mpo.packed_attention import _causal
from mpo.packed_models import pack_where_exact, packed_logits, packed_states, reads_packed_rows
from mpo.packed_rows import Family, PackedRow
from mpo.reward_model.score import pair_scores
from mpo.tokenization import EncodedPair

VOCABULARY, PAD = 97, 0
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "pad_token_id": PAD,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
NARROW = {**GROUPED, "head_dim": 8}
EXACT = {
    "llama": LlamaConfig(**GROUPED),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**NARROW),
    "gemma": GemmaConfig(**NARROW),
    "gemma3, sliding window": Gemma3TextConfig(**NARROW, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, pad_token_id=PAD),
    "mistral, sliding window": MistralConfig(**GROUPED, sliding_window=4),
    "olmo, clipped": OlmoConfig(**GROUPED, clip_qkv=0.05),
}
FALLING_BACK = {
    "bloom, ALiBi": BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4),
    "mpt, ALiBi": MptConfig(vocab_size=VOCABULARY, d_model=32, n_layers=2, n_heads=4),
    "nemotron, whose attention does not hear of the row": NemotronConfig(**GROUPED),
    "qwen2-moe, whose windows are in its masks alone": Qwen2MoeConfig(
        **GROUPED,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=16,
        num_experts=2,
        num_experts_per_tok=1,
        use_sliding_window=True,
        sliding_window=64,
        max_window_layers=1,
    ),
    "mamba, state space": MambaConfig(vocab_size=VOCABULARY, hidden_size=32, num_hidden_layers=2),
}
PAIRS = [
    EncodedPair("a", [3, 9, 12, 40, 41, 42, 43], [7, 30, 31, 32, 2], [8, 2], True, True),
    EncodedPair("b", [4], [5], [6, 8, 9, 10, 11, 2], False, True),
]


def model_of(config: Any, auto: Any = AutoModelForCausalLM) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = auto.from_config(copy.deepcopy(config))
    return model.eval()


def scoring(name: str) -> Any:
    """The configuration of such a model with a head of one score."""
    return type(EXACT[name]).from_dict({**EXACT[name].to_dict(), "num_labels": 1})


def gradients(model: PreTrainedModel, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", EXACT)
def test_packed_pairs_have_the_logprobs_and_gradients_of_plain_rows(name: str) -> None:
    model = model_of(EXACT[name])
    plain = logprobs_of_pairs(model, PAIRS, PAD)
    expected = gradients(model, (plain.chosen - 2 * plain.rejected).sum())
    pack_where_exact(model, pytest.fail)
    assert reads_packed_rows(model)
    found = logprobs_of_pairs(model, PAIRS, PAD)
    assert_close(found.chosen, plain.chosen, atol=1e-5, rtol=1e-5)
    assert_close(found.rejected, plain.rejected, atol=1e-5, rtol=1e-5)
    packed = gradients(model, (found.chosen - 2 * found.rejected).sum())
    assert packed.keys() == expected.keys()
    for weight, gradient in expected.items():
        assert_close(
            packed[weight], gradient, atol=1e-5, rtol=1e-4, msg=lambda text, at=weight: f"{at}: {text}"
        )


@pytest.mark.parametrize("name", EXACT)
def test_packed_rewards_are_those_of_plain_rows(name: str) -> None:
    model = model_of(scoring(name), AutoModelForSequenceClassification)
    expected = pair_scores(model, PAIRS, PAD)
    pack_where_exact(model, pytest.fail)
    assert_close(pair_scores(model, PAIRS, PAD), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FALLING_BACK)
def test_a_model_that_cannot_read_packed_rows_goes_on_with_plain_ones_and_says_so(name: str) -> None:
    model, said = model_of(FALLING_BACK[name]), list[str]()
    before = model(torch.tensor([[3, 4, 5]])).logits
    pack_where_exact(model, said.append)
    assert not reads_packed_rows(model)
    assert len(said) == 1
    assert said[0].startswith("Rows are padded")
    assert torch.equal(model(torch.tensor([[3, 4, 5]])).logits, before)


def sees_later_tokens(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return scaled_dot_product_attention(query, key, value)


def sees_not_its_prompt(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    own = slice(key.shape[2] - query.shape[2], None)
    return scaled_dot_product_attention(query, key[:, :, own], value[:, :, own], is_causal=True)


def scales_by_nothing(query: Tensor, key: Tensor, value: Tensor, _: object, window: int | None) -> Tensor:
    return _causal(query, key, value, 1.0, window)


@pytest.mark.parametrize("fault", [sees_later_tokens, sees_not_its_prompt, scales_by_nothing])
def test_a_model_that_reads_them_otherwise_is_found_out(
    fault: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, said = model_of(EXACT["llama"]), list[str]()
    before = model(torch.tensor([[3, 4, 5]])).logits
    monkeypatch.setattr("mpo.packed_attention.takes_blocks", lambda *_: False)
    monkeypatch.setattr("mpo.packed_attention._causal", fault)
    pack_where_exact(model, said.append)
    assert not reads_packed_rows(model)
    assert "differ by" in said[0]
    assert torch.equal(model(torch.tensor([[3, 4, 5]])).logits, before)


def test_an_attention_with_settings_that_are_not_understood_is_refused() -> None:
    model, said = model_of(EXACT["llama"]), list[str]()
    layer: Any = model.base_model.layers[0].self_attn
    plain = layer.forward
    layer.forward = lambda *values, **named: plain(*values, **named, s_aux=torch.zeros(4))
    model.config._attn_implementation = "sdpa"
    pack_where_exact(model, said.append)
    assert not reads_packed_rows(model)


def test_rows_that_are_not_packed_are_read_as_before() -> None:
    model = model_of(EXACT["llama"])
    ids, mask = torch.tensor([[PAD, 3, 4], [5, 6, 7]]), torch.tensor([[0, 1, 1], [1, 1, 1]])
    before = model(input_ids=ids, attention_mask=mask).logits
    pack_where_exact(model, pytest.fail)
    assert_close(model(input_ids=ids, attention_mask=mask).logits, before, atol=1e-6, rtol=1e-5)


def test_the_head_runs_at_the_responses_alone() -> None:
    model = model_of(EXACT["llama"])
    pack_where_exact(model, pytest.fail)
    row = PackedRow.of([Family([3, 4, 5], [[6], [7, 8]])])
    logits = packed_logits(model, row)
    assert logits.shape == (3, VOCABULARY)
    assert_close(logits, model.get_output_embeddings()(packed_states(model, row, row.before)))
