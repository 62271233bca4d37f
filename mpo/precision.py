"""Mixed precision: forward passes in bf16 over weights, gradients and an optimizer that stay in fp32."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from transformers import PreTrainedModel

from mpo.adapted_models import AdaptedModel
from mpo.policies import training_device
from mpo.training_config import Precision

IN_BF16 = "mpo_in_bf16"
"""Attribute of a model whose passes are to be in bf16; a copy of the model has it too."""


def resolves_to_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether passes on a device are in bf16. `auto`: on a GPU whose own instructions multiply it."""
    if precision == "auto":
        # Older GPUs convert to fp32 and back for each product, which is slower than fp32 itself.
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return precision == "bf16"


def set_precision(model: PreTrainedModel, precision: Precision) -> None:
    """Has a model's passes within `autocast_of` computed in this precision from here on."""
    setattr(model, IN_BF16, resolves_to_bf16(precision, training_device()))


def autocast_of(model: PreTrainedModel | AdaptedModel) -> AbstractContextManager[object]:
    """Within it a pass through the model is in its precision; an adapted one's is its base's.

    Micikevicius et al. 2018 (arXiv 1710.03740); bf16 has the exponents of fp32, so that no loss is scaled.
    Only what a network computes belongs into it: heads of one score, softmax and losses are outside, in fp32.
    """
    whole = _whole(model)
    if not getattr(whole, IN_BF16, False):
        return nullcontext()
    # Without the cache of cast weights: it is right until a step changes them, a pass reads each once, and in
    # shards it would keep them whole.
    return torch.autocast(whole.device.type, dtype=torch.bfloat16, cache_enabled=False)


@contextmanager
def in_fp32(model: PreTrainedModel) -> Iterator[None]:
    """Within it all of the model's passes are in fp32: probes compare to a tolerance that is fp32's."""
    before = getattr(model, IN_BF16, False)
    setattr(model, IN_BF16, False)
    try:
        yield
    finally:
        setattr(model, IN_BF16, before)


def _whole(model: PreTrainedModel | AdaptedModel) -> PreTrainedModel:
    return model.base.model if isinstance(model, AdaptedModel) else model
