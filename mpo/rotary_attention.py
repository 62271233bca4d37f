"""Attention with rotary positions over packed rows, in fewer passes over memory than its formula makes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from mpo.layer_probes import gives_the_same, is_made_of
from mpo.packed_attention import packed_attention
from mpo.packed_rows import Family, PackedRow, Span, narrowed, spread

PARTS = ("q_proj", "k_proj", "v_proj", "o_proj")
NORMS = ("q_norm", "k_norm")
"""Of each head, before it is turned; some families have them."""
PROBED = "mpo_packed_probed"
"""What transformers knows the packed attention by that tells what it is asked for."""
PROBE = [Family([0] * 3, [[0] * 2, [0] * 4])]


class Rotation(torch.autograd.Function):
    """(a, b) → (a cos − b sin, b cos + a sin) of the halves of each head; Su et al. 2021 (arXiv 2104.09864),
    section 3.4.2. Backward it turns the other way."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """x: (1, n, heads, width). cosines, sines: (1, n, 1, width), their halves alike."""
        ctx.save_for_backward(cosines, sines)
        ctx.dtype = x.dtype
        return _turned(x, cosines, sines, 1.0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Of x."""
        cosines, sines = ctx.saved_tensors
        return _turned(gradients[0], cosines, sines, -1.0).to(ctx.dtype), None, None


def _turned(x: Tensor, cosines: Tensor, sines: Tensor, sign: float) -> Tensor:
    found, half = x * cosines, x.shape[-1] // 2
    x = x.to(found.dtype)
    found[..., :half].addcmul_(x[..., half:], sines[..., half:], value=-sign)
    found[..., half:].addcmul_(x[..., :half], sines[..., :half], value=sign)
    return found


def forward_of(layer: nn.Module) -> Callable[..., Any] | None:
    """The forward that computes the same as a layer's own, to rounding; None where there is none.

    Which layers it is for is seen by trying: families of models name and shape their attention as they like.
    """
    made_so = hasattr(layer, "head_dim") and hasattr(layer, "config")
    return _forward if made_so and _attends_alike(layer) else None


@contextmanager
def queries_at(layer: nn.Module, places: Tensor) -> Iterator[None]:
    """Within it, a layer with this forward attends, in a packed row, from the places and what lies between
    them in their sequences; elsewhere it gives 0. places: (n,), ascending, one at least, on a CPU."""

    def narrow(_layer: nn.Module, inputs: Any, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        row: PackedRow | None = settings.get("packed")
        if row is None:
            return inputs, settings
        return inputs, {**settings, "queries": narrowed(row.spans, places.tolist())}

    hook = layer.register_forward_pre_hook(narrow, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def attends_from_some(layer: nn.Module) -> bool:
    """Whether a layer was given this forward, which `queries_at` is for."""
    return getattr(vars(layer).get("forward"), "__func__", None) is _forward


def _forward(layer: Any, hidden_states: Tensor, **settings: Any) -> Any:
    """As transformers calls an attention layer. Rows that are not packed are left to the layer's class."""
    row: PackedRow | None = settings.get("packed")
    if row is None:
        return type(layer).forward(layer, hidden_states=hidden_states, **settings)
    states, queries = hidden_states, settings.get("queries")
    cosines, sines = (each[:, :, None] for each in settings["position_embeddings"])
    key = Rotation.apply(_heads(layer, "k", states), cosines, sines)
    value, places = _heads(layer, "v", states), None if queries is None else _places(queries)
    asked = states
    if places is not None:
        asked, cosines, sines = (each.index_select(1, places) for each in (states, cosines, sines))
    query = Rotation.apply(_heads(layer, "q", asked), cosines, sines)
    query, key, value = (each.transpose(1, 2) for each in (query, key, value))
    found, _ = packed_attention(
        layer,
        query,
        key,
        value,
        None,
        packed=row,
        queries=queries,
        scaling=layer.scaling,
        sliding_window=_window(layer),
    )
    found = layer.o_proj(found.flatten(2))
    if places is not None:
        found = spread(found, places, states.shape[1])
    return found, None


def _heads(layer: Any, part: str, states: Tensor) -> Tensor:
    """Queries, keys or values: (1, n, heads, width) of (1, n, width of the model)."""
    heads = getattr(layer, f"{part}_proj")(states).unflatten(-1, (-1, layer.head_dim))
    norm = getattr(layer, f"{part}_norm", None)
    return heads if norm is None else norm(heads)


def _places(spans: Sequence[Span]) -> Tensor:
    return torch.cat([torch.arange(span.start, span.stop) for span in spans])


def _window(layer: Any) -> int | None:
    """Keys that a query of the layer sees at most; None = all before it."""
    window: int | None = getattr(layer, "sliding_window", getattr(layer.config, "sliding_window", None))
    return window


def _attends_alike(layer: Any) -> bool:
    parts = PARTS + tuple(name for name in NORMS if hasattr(layer, name))
    if not is_made_of(layer, parts) or {name for name, _ in layer.named_children()} != set(parts):
        return False
    weight = next(layer.parameters())
    row = PackedRow.of(PROBE, weight.device)
    tokens, asked_for = row.input_ids.shape[1], dict[str, Any]()
    # Positions from which nobody turns a whole number of times.
    angles = torch.outer(torch.arange(tokens) + 1.0, torch.linspace(0.1, 1.0, layer.head_dim // 2))
    angles = torch.cat((angles, angles), dim=-1)[None].to(weight.device)
    given = {"position_embeddings": (angles.cos(), angles.sin()), "attention_mask": None, "packed": row}

    def ours(states: Tensor) -> Any:
        return _forward(layer, states, **given)[0]

    def theirs(states: Tensor) -> Any:
        return type(layer).forward(layer, hidden_states=states, **given, asked_for=asked_for)[0]

    usual = layer.config._attn_implementation
    layer.config._attn_implementation = PROBED
    try:
        alike = gives_the_same(ours, theirs, weight.new_empty((1, tokens, layer.config.hidden_size)))
    finally:
        layer.config._attn_implementation = usual
    # A row as short as the probe does not show by its numbers how far a layer sees.
    return alike and asked_for.get("sliding_window") == _window(layer)


def _probed(*tensors: Any, asked_for: dict[str, Any], **settings: Any) -> Any:
    """The packed attention; keeps what a layer asks of it."""
    asked_for.update(settings)
    return packed_attention(*tensors, **settings)


AttentionInterface.register(PROBED, _probed)
