"""One token a row by a model's layers: which models are read so, and that it changes no number."""

import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import DynamicCache, PreTrainedModel
from transformers.models.gpt2 import GPT2Config
from transformers.models.llama import LlamaConfig
from transformers.models.mistral import MistralConfig
from transformers.models.phi import PhiConfig
from transformers.models.qwen2 import Qwen2Config
from transformers.models.qwen3 import Qwen3Config

from mpo import decoding
from mpo.adapted_models import AdaptedModel, adapted_policy
from mpo.adapters import AdaptedBase
from mpo.cache_arguments import cache_argument
from mpo.decoding import decoder_of
from mpo.policies import load_policy
from mpo.rolling_cache import RollingCache, layers_of
from mpo.training_config import LoRAConfig
from tests.mpo.test_packed_models import GROUPED, NARROW, PAD, VOCABULARY, model_of
from tests.mpo.tiny import write_policy

BY_LAYERS: dict[str, Any] = {
    "llama": LlamaConfig(**GROUPED),
    "llama, biased and scaled": LlamaConfig(
        **GROUPED,
        attention_bias=True,
        rope_scaling={"rope_type": "linear", "factor": 4.0},
    ),
    "qwen2": Qwen2Config(**GROUPED),
    "qwen3": Qwen3Config(**NARROW),
    "mistral": MistralConfig(**GROUPED, sliding_window=None),
}
BY_FORWARD: dict[str, Any] = {
    "mistral, sliding window": MistralConfig(**GROUPED, sliding_window=4),
    "gpt2": GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, pad_token_id=PAD),
    "phi, parallel layers": PhiConfig(**GROUPED),
}
ROWS = [3, 9, 1, 6]


def cache_of(policy: PreTrainedModel | AdaptedModel, lengths: list[int]) -> RollingCache:
    """Rows of so many tokens each, read one by one, and room for one more."""
    cache = RollingCache()
    for row, length in enumerate(lengths):
        plain = DynamicCache()
        policy(input_ids=tokens(row, length)[None], use_cache=True, **{cache_argument(policy): plain})
        cache.add(layers_of(plain), [length])
    cache.make_room()
    return cache


def tokens(row: int, count: int) -> Tensor:
    return (torch.arange(count) * 7 + 11 * row) % VOCABULARY


@torch.inference_mode()
def apart(policy: PreTrainedModel | AdaptedModel) -> None:
    """Fails where two steps of rows together give other logits than whole forwards over each alone."""
    cache, decode = cache_of(policy, ROWS), decoder_of(policy)
    for step in range(2):
        last = torch.stack([tokens(row, length + step + 1)[-1] for row, length in enumerate(ROWS)])
        cache.make_room()
        found = decode(last, cache)
        cache.advance()
        for row, length in enumerate(ROWS):
            whole = policy(input_ids=tokens(row, length + step + 1)[None], use_cache=False).logits[0, -1]
            assert_close(found[row], whole, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", BY_LAYERS)
def test_a_model_made_as_most_is_read_layer_by_layer(name: str) -> None:
    model = model_of(BY_LAYERS[name])
    assert isinstance(decoder_of(model), decoding._Layers)
    apart(model)


@pytest.mark.parametrize("name", BY_FORWARD)
def test_another_is_read_by_its_forward(name: str) -> None:
    model = model_of(BY_FORWARD[name])
    assert isinstance(decoder_of(model), decoding._ByForward)
    apart(model)


class Doubled(nn.Module):
    """A feed-forward part behind which the layer does more than its modules tell."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, states: Tensor) -> Tensor:
        """Differs by how many dimensions it is given: the layers' own forward has one more."""
        return self.part(states) * states.dim()  # type: ignore[no-any-return]


def test_numbers_decide_and_not_names() -> None:
    model: Any = model_of(BY_LAYERS["llama"])
    model.model.layers[1].mlp = Doubled(model.model.layers[1].mlp)
    assert isinstance(decoder_of(model), decoding._ByForward)
    apart(model)


def test_an_adapter_is_read_over_its_base(tmp_path: Path) -> None:
    base = AdaptedBase(load_policy(write_policy(tmp_path / "base")), "digest")
    for name in ("one", "two"):
        adapted_policy(base, name, LoRAConfig(rank=2), tmp_path / "base", seed=1)
        for path, parameter in base.parameters(name).items():
            if "lora_B" in path:
                nn.init.normal_(parameter, std=0.5 if name == "one" else 0.1)
    policies = [AdaptedModel(base, name) for name in ("one", "two", None)]
    for policy in policies:
        apart(policy)


@pytest.mark.parametrize("config", [BY_LAYERS["llama"], BY_FORWARD["gpt2"]], ids=["by layers", "by forward"])
def test_a_model_that_nobody_holds_is_let_go(config: Any) -> None:
    model = model_of(config)
    decoder_of(model)
    held = weakref.ref(model)
    del model
    gc.collect()
    assert held() is None
