"""The oracle of `conv3x3`: PyTorch's own direct convolution and its gradients, on any device, in the type of x.

The C++ kernels are held to float64 by their tests, and this is what runs where they do not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import Conv3x3BackwardCall, Conv3x3Call


def conv3x3(call: Conv3x3Call) -> Tensor:
    """The sum over nine neighbours and all channels, with one pixel of zeros around the image, plus the residual.

    Args:
        call: As for `fastdiff.ops.conv3x3`.

    Returns:
        [B, C_out, H, W], channels_last.
    """
    y = F.conv2d(call.x, call.weight, call.bias, padding=1)
    y = y if call.residual is None else y + call.residual
    return y.contiguous(memory_format=torch.channels_last)


def conv3x3_backward(call: Conv3x3BackwardCall) -> tuple[Tensor, Tensor]:
    """The gradients of `conv3x3` by x, where it is wanted, and by the weights.

    Args:
        call: With the gradient of the result, [B, C_out, H, W].

    Returns:
        (dx of x's shape, or empty; dweight of the weights' shape), channels_last.
    """
    dx, dweight, _ = torch.ops.aten.convolution_backward(
        call.grad, call.x, call.weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, [call.want_input, True, False]
    )
    layout = torch.channels_last
    dx = call.x.new_empty(0) if dx is None else dx.contiguous(memory_format=layout)
    return dx, dweight.contiguous(memory_format=layout)
