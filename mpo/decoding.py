"""One more token of many sequences: a model's own layers, without what its library does around them.

A forward over one token a row is little arithmetic: much goes into wrappers, masks, and attention that is
made for many queries. Where a model is made as most are (RMS norms, rotary positions, heads that share keys),
its modules are called one after another. Which models are is seen by trying; of others the forward is called.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import DynamicCache, PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.cache_arguments import cache_argument
from mpo.rolling_cache import RollingCache, layers_of
from mpo.rounding import share_apart, tolerance_of

PROBE_TOKENS = (5, 2)
"""Of the prompts by which a model is tried: unequal, so that one row has columns that are not its own."""

Decode = Callable[[Tensor, RollingCache], Tensor]
"""The last token of each row, (rows,) ids, and a cache of what comes before → logits of the next, (rows,
vocabulary). The cache has room for one more column, which the call writes."""


def decoder_of(policy: PreTrainedModel | AdaptedModel) -> Decode:
    """How a policy reads one token a row."""
    if isinstance(policy, AdaptedModel):
        decode, adapted = _decoder_of(policy.base.model), policy

        def decode_adapted(last: Tensor, cache: RollingCache) -> Tensor:
            adapted.base.activate(adapted.name)
            return decode(last, cache)

        return decode_adapted
    return _decoder_of(policy)


_tried: "WeakKeyDictionary[PreTrainedModel, _Layers | None]" = WeakKeyDictionary()
"""The layers of models that have been tried; None where the forward has to be called. Parts of a model do not
keep it, as `_ByForward` would."""


def _decoder_of(model: PreTrainedModel) -> Decode:
    if model not in _tried:
        layers = _Layers.of(model)
        _tried[model] = layers if layers is not None and _decodes_alike(model, layers) else None
    return _tried[model] or _ByForward(model)


class _ByForward:
    """As the model's library does it."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, self._cache_argument = model, cache_argument(model)

    def __call__(self, last: Tensor, cache: RollingCache) -> Tensor:
        starts, others = _columns(cache, last.device)
        logits: Tensor = self._model(
            input_ids=last[:, None],
            attention_mask=None if others is None else (~others).long(),
            position_ids=cache.width - starts,
            use_cache=True,
            logits_to_keep=1,
            **{self._cache_argument: cache},
        ).logits[:, -1]
        return logits


@dataclass(frozen=True)
class _Layer:
    before_attention: nn.Module
    attention: Any
    before_mlp: nn.Module
    mlp: nn.Module


class _Layers:
    """A model's own modules, one after another."""

    def __init__(self, backbone: Any, head: nn.Module, layers: list[_Layer]) -> None:
        self._embed, self._rotary = backbone.embed_tokens, backbone.rotary_emb
        self._layers, self._norm, self._head = layers, backbone.norm, head

    @classmethod
    def of(cls, model: PreTrainedModel) -> "_Layers | None":
        """None where a module is missing, or one is there that would be left out."""
        backbone: Any = model.base_model
        head = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        parts = ("embed_tokens", "rotary_emb", "norm", "layers")
        if head is None or {name for name, _ in backbone.named_children()} != set(parts):
            return None
        if any(type(layer).__name__ != "DynamicLayer" for layer in DynamicCache(config=model.config).layers):
            return None  # one that attends in a window
        found = [_layer(each) for each in backbone.layers]
        layers = [layer for layer in found if layer is not None]
        return cls(backbone, head, layers) if len(layers) == len(found) else None

    def __call__(self, last: Tensor, cache: RollingCache) -> Tensor:
        starts, others = _columns(cache, last.device)
        states = self._embed(last)
        cosines, sines = self._rotary(states[:, None], position_ids=cache.width - starts)
        half = cosines.shape[-1] // 2
        sines = torch.cat((-sines[..., :half], sines[..., half:]), dim=-1)
        bias = None
        if others is not None:
            bias = torch.zeros_like(others, dtype=states.dtype).masked_fill_(others, -torch.inf)[:, None]
        for layer, kept in zip(self._layers, cache.layers, strict=True):
            states = states + _attend(
                layer.attention, _norm(layer.before_attention, states), cosines, sines, kept, bias
            )
            states = states + layer.mlp(_norm(layer.before_mlp, states))
        logits: Tensor = self._head(_norm(self._norm, states))
        return logits


def _layer(layer: Any) -> _Layer | None:
    names = {"self_attn", "mlp", "input_layernorm", "post_attention_layernorm"}
    if {name for name, _ in layer.named_children()} != names:
        return None
    attention = layer.self_attn
    parts = {name for name, _ in attention.named_children()} - {"q_norm", "k_norm"}
    if parts != {"q_proj", "k_proj", "v_proj", "o_proj"}:
        return None
    return _Layer(layer.input_layernorm, attention, layer.post_attention_layernorm, layer.mlp)


def _norm(norm: Any, states: Tensor) -> Tensor:
    if states.dtype != torch.float32 or not hasattr(norm, "variance_epsilon"):
        return norm(states)  # type: ignore[no-any-return]
    return nn.functional.rms_norm(states, states.shape[-1:], norm.weight, norm.variance_epsilon)


def _columns(cache: RollingCache, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Where each row begins, (rows, 1), and which columns are not its own, (rows, columns and the one that is
    written); None where all are."""
    begins = cache.starts
    starts = torch.tensor(begins, device=device)[:, None]
    return starts, torch.arange(cache.width + 1, device=device) < starts if any(begins) else None


def _attend(
    attention: Any, states: Tensor, cosines: Tensor, sines: Tensor, kept: Any, bias: Tensor | None
) -> Tensor:
    """states: (rows, width). cosines, sines: (rows, 1, head size); of sines the first half is negated."""
    rows, size = len(states), attention.head_dim
    queries = attention.q_proj(states).view(rows, -1, size)
    new_keys = attention.k_proj(states).view(rows, -1, size)
    if hasattr(attention, "q_norm"):
        queries, new_keys = _norm(attention.q_norm, queries), _norm(attention.k_norm, new_keys)
    queries, new_keys = _turned(queries, cosines, sines), _turned(new_keys, cosines, sines)
    new_values = attention.v_proj(states).view(rows, -1, size)
    keys, values = kept.update(new_keys[:, :, None], new_values[:, :, None])
    # The heads that share keys are the rows of one small product; no key is repeated for them.
    grouped = (queries * attention.scaling).view(rows * keys.shape[1], -1, size)
    scores = torch.bmm(grouped, keys.flatten(0, 1).transpose(1, 2))
    if bias is not None:
        scores = scores.view(rows, -1, scores.shape[-1]).add_(bias).view_as(scores)
    seen = torch.bmm(scores.softmax(dim=-1), values.flatten(0, 1))
    return attention.o_proj(seen.view(rows, -1))  # type: ignore[no-any-return]


def _turned(heads: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, arXiv 2104.09864, section 3.4.2), the halves apart."""
    return torch.addcmul(heads * cosines, heads.roll(heads.shape[-1] // 2, dims=-1), sines)


@torch.inference_mode()
def _decodes_alike(model: PreTrainedModel, layers: _Layers) -> bool:
    """Whether both ways give the same logits after prompts of which one is padded."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = model.config.get_text_config().vocab_size
    tokens = torch.randint(vocabulary, (len(PROBE_TOKENS), max(PROBE_TOKENS) + 1), generator=generator)
    tokens = tokens.to(model.device)
    try:
        found = layers(tokens[:, -1], _read(model, tokens[:, :-1]))
    except (AttributeError, IndexError, RuntimeError, TypeError, ValueError):
        return False
    expected = _ByForward(model)(tokens[:, -1], _read(model, tokens[:, :-1]))
    return share_apart(found, expected) <= tolerance_of(model.dtype)


def _read(model: PreTrainedModel, tokens: Tensor) -> RollingCache:
    """Rows of `PROBE_TOKENS` tokens, each read by itself."""
    cache = RollingCache()
    for row, length in zip(tokens, PROBE_TOKENS, strict=True):
        plain = DynamicCache()
        model(input_ids=row[None, :length], use_cache=True, **{cache_argument(model): plain})
        cache.add(layers_of(plain), [length])
    cache.make_room()
    return cache
