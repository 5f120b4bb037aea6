"""The oracle of `linear` and `column_sums`: PyTorch's own products and sums, on any device, in the type of x."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import ColumnSumsCall, LinearBackwardCall, LinearCall


def linear(call: LinearCall) -> Tensor:
    """x weight^T + bias + residual.

    Args:
        call: As for `fastdiff.ops.linear`, x [N, C_in].

    Returns:
        [N, C_out].
    """
    y = F.linear(call.x, call.weight, call.bias)
    return y if call.residual is None else y + call.residual


def linear_backward(call: LinearBackwardCall) -> tuple[Tensor, Tensor]:
    """The gradients of `linear` by x, where it is wanted, and by the weights.

    Args:
        call: With the gradient of the result, [N, C_out].

    Returns:
        (dx of x's shape, or empty; dweight of the weights' shape).
    """
    dx = call.grad @ call.weight if call.want_input else call.x.new_empty(0)
    return dx, call.grad.t() @ call.x


def column_sums(call: ColumnSumsCall) -> Tensor:
    """The sums over the rows of x [N, C], [C]."""
    return call.x.sum(dim=0)
