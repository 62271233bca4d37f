"""Which models read packed rows: those that were seen to do so exactly, when they were loaded."""

import inspect
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.last_layer import last_layer_at
from mpo.layer_probes import CANNOT
from mpo.packed_attention import PACKED
from mpo.packed_rows import Family, PackedRow
from mpo.precision import autocast_of, in_fp32
from mpo.replaced_layers import replace_where_equal, restore
from mpo.rounding import share_apart, tolerance_of
from mpo.seen_windows import check_windows

PROBES = [(5, (4, 1)), (3, (2, 6, 3)), (1, (5,))]
"""Tokens of prompts and of their responses: of unequal lengths, some of a single token."""


def reads_packed_rows(model: PreTrainedModel | AdaptedModel) -> bool:
    """Whether a model was found to read packed rows exactly; an adapted one reads them as its base does."""
    return implementation(model.base.model if isinstance(model, AdaptedModel) else model) == PACKED


def packed_states(model: PreTrainedModel, row: PackedRow, places: Tensor) -> Tensor:
    """Final hidden states at some places of a row: (places, width), in the model's precision."""
    with autocast_of(model), last_layer_at(model, places):
        states: Tensor = model.base_model(**row.inputs()).last_hidden_state[0, places]
    return states


def packed_logits(model: PreTrainedModel, row: PackedRow) -> Tensor:
    """What predicts each token of the responses: (tokens of responses, vocabulary). The head is run on these
    alone, in the model's precision."""
    with autocast_of(model), last_layer_at(model, row.before):
        logits: Tensor = model(**row.inputs(), logits_to_keep=row.before).logits[0]
    return logits


def implementation(model: PreTrainedModel) -> str | None:
    """What transformers calls the attention of a model's text part."""
    found: str | None = model.config.get_text_config()._attn_implementation
    return found


def say_nothing(_reason: str) -> None:
    """The `tell` of whoever runs a model of which its training has said it."""


def pack_where_exact(model: PreTrainedModel, tell: Callable[[str], None]) -> None:
    """Has a model read packed rows from here on, or tells why it reads plain ones.

    Compared are the hidden states that predict the responses' tokens, and the gradients of a random
    combination of them with respect to the embedded tokens, packed and as one plain row a response; in fp32,
    whatever the model's precision.
    """
    if reads_packed_rows(model):
        return
    with in_fp32(model):
        reason = _why_not(model)
    if reason is not None:
        tell(f"Rows are padded and each prompt is computed once a response: {reason}.")


def _why_not(model: PreTrainedModel) -> str | None:
    usual = implementation(model)
    if usual != "sdpa":
        return f"the model's attention is {usual}, and only sdpa can be replaced"
    if model.can_generate() and "logits_to_keep" not in inspect.signature(model.forward).parameters:
        return "the model gives logits of all positions alone"
    families = _families(model.config.get_text_config().vocab_size)
    expected = _read_plainly(model, families)
    try:
        check_windows(model)
    except CANNOT as error:
        return f"the model does not read them together ({error})"
    model.set_attn_implementation(PACKED)
    replaced = replace_where_equal(model)
    reason = _what_differs(model, families, expected)
    for layers in filter(None, reversed(replaced.values())):
        if reason is not None:
            restore(layers)
            reason = _what_differs(model, families, expected)
    if reason is not None:
        model.set_attn_implementation(usual)
    return reason


def _what_differs(model: PreTrainedModel, families: list[Family], expected: "Seen") -> str | None:
    try:
        found = _read_packed(model, families)
    except CANNOT as error:
        return f"the model does not read them together ({error})"
    apart = max(share_apart(a, b) for a, b in zip(found, expected, strict=True))
    return (
        None
        if apart <= tolerance_of(model.dtype)
        else f"read together, the model's numbers differ by {apart:.1g}"
    )


def _families(vocabulary: int) -> list[Family]:
    generator = torch.Generator().manual_seed(0)

    def draw(tokens: int) -> list[int]:
        return torch.randint(vocabulary, (tokens,), generator=generator).tolist()

    return [Family(draw(prompt), [draw(length) for length in lengths]) for prompt, lengths in PROBES]


Seen = tuple[Tensor, Tensor]
"""Hidden states that predict the responses' tokens, and gradients of the embedded tokens: (…, width)."""


def _read_packed(model: PreTrainedModel, families: list[Family]) -> Seen:
    row = PackedRow.of(families, model.device)
    weights = _weights(model, len(row.before))
    return _read(model, lambda: packed_states(model, row, row.before), weights)


def _read_plainly(model: PreTrainedModel, families: list[Family]) -> Seen:
    """Every response in a row of its own; a prompt's gradients are added up over its responses'."""
    states, gradients = list[Tensor](), list[Tensor]()
    weights = _weights(model, sum(len(response) for family in families for response in family.responses))
    for prompt, responses in families:
        of_prompt, of_responses = list[Tensor](), list[Tensor]()
        for response in responses:
            before = torch.arange(len(response), device=model.device) + len(prompt) - 1
            mine, weights = torch.split(weights, [len(response), len(weights) - len(response)])
            ids = torch.tensor([[*prompt, *response]], device=model.device)
            seen, gradient = _read(model, partial(_plain_states, model, ids, before), mine)
            states.append(seen)
            of_prompt.append(gradient[: len(prompt)])
            of_responses.append(gradient[len(prompt) :])
        gradients += [torch.stack(of_prompt).sum(dim=0), *of_responses]
    return torch.cat(states), torch.cat(gradients)


def _plain_states(model: PreTrainedModel, ids: Tensor, places: Tensor) -> Tensor:
    states: Tensor = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, places]
    return states


def _read(model: PreTrainedModel, states_of: Callable[[], Tensor], weights: Tensor) -> Seen:
    embedded: list[Tensor] = []

    def keep(_layer: object, _inputs: object, output: Tensor) -> Tensor:
        embedded.append(output.detach().requires_grad_())
        return embedded[0]

    hook = model.get_input_embeddings().register_forward_hook(keep)
    try:
        with torch.enable_grad():
            states = states_of()
            (gradient,) = torch.autograd.grad((states * weights).sum(), embedded)
    finally:
        hook.remove()
    return states.detach(), gradient[0]


def _weights(model: PreTrainedModel, tokens: int) -> Tensor:
    width = model.config.get_text_config().hidden_size
    drawn = torch.randn((tokens, width), generator=torch.Generator().manual_seed(1))
    return drawn.to(model.device, model.dtype)
