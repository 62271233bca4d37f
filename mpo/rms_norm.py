"""Root-mean-square normalisation in fewer passes over memory than autograd makes of its formula."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

TOLERANCE = 1e-5


class RMSNormFunction(torch.autograd.Function):
    """x / sqrt(mean(x²) + ε) · weight over the last dimension; Zhang & Sennrich 2019 (arXiv 1910.07467).

    Kept for the backward pass is x̂ = x / sqrt(…) alone: ∂x = (ĝ − x̂ · mean(ĝ · x̂)) / sqrt(…), ĝ = g · weight.
    Mean and root are in fp32 at least. Within autocast the result is cast here, once for all the products
    that read it: each would cast it for itself, and keep its copy for the backward pass.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
        """(…, width), of x's type, or of autocast's."""
        wide = torch.promote_types(x.dtype, torch.float32)
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=wide)
        rate = torch.rsqrt(norm.square_().div_(x.shape[-1]).add_(epsilon))
        normal = (x * rate).to(x.dtype)
        ctx.save_for_backward(normal, rate, weight)
        return (normal * weight).to(_result_type(x))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None, None]:
        """Of x, and of the weight where it is trained."""
        normal, rate, weight = ctx.saved_tensors
        gradient = gradients[0].to(rate.dtype)
        product = gradient * normal
        of_weight = product.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        mean = (product @ weight.to(rate.dtype)).unsqueeze(-1).div_(normal.shape[-1])
        scaled = gradient * weight
        return scaled.addcmul_(normal, mean, value=-1).mul_(rate).to(normal.dtype), of_weight, None


def _result_type(x: Tensor) -> torch.dtype:
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def forward_of(layer: nn.Module) -> Callable[..., Any] | None:
    """The forward that computes the same as a layer's own, to rounding; None where there is none.

    Which layers compute just this is seen by trying: families of models name their layers as they like, and
    some add 1 to the weight.
    """
    return _forward if _computes_this(layer) else None


def _forward(layer: Any, x: Tensor) -> Any:
    return RMSNormFunction.apply(x, layer.weight, layer.variance_epsilon)


@torch.no_grad()
def _computes_this(layer: nn.Module) -> bool:
    weight, epsilon = getattr(layer, "weight", None), getattr(layer, "variance_epsilon", None)
    if not isinstance(weight, nn.Parameter) or not isinstance(epsilon, float) or weight.dim() != 1:
        return False
    if weight.dtype != torch.float32:
        return False  # where numbers are coarser, models differ in what they round
    x = torch.randn((3, len(weight)), generator=torch.Generator().manual_seed(0)).to(weight.device)
    ours = RMSNormFunction.apply(x, weight, epsilon)
    return torch.allclose(layer(x), ours, atol=TOLERANCE, rtol=TOLERANCE)
