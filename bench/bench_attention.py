"""Self-attention on a packed qkv, forward, and forward with backward: the op against the plain formula.

On the CPU the op is PyTorch's own `scaled_dot_product_attention`; bench/gpu_suite.py races the Triton kernels with it.
"""

import pytest
import torch

from fastdiff import ops
from fastdiff.tensors import split_qkv

# Batch, tokens, channels, heads: the networks of Ho et al. and of improved-diffusion at 16x16 and 8x8.
SHAPES = {
    "8x256x256, 1 head": (8, 256, 256, 1),
    "8x64x384, 4 heads": (8, 64, 384, 4),
    "1x256x256, 1 head": (1, 256, 256, 1),
}
ARMS = ("fastdiff", "torch")


def arms(shape, backward):
    batch, tokens, channels, heads = shape
    qkv = torch.randn(batch, tokens, 3 * channels).requires_grad_(backward)
    grad = torch.randn(batch, tokens, channels)

    def plain():
        q, k, v = split_qkv(qkv, heads, "legacy")
        scores = (q * (channels // heads) ** -0.5) @ k.transpose(2, 3)
        return (scores.softmax(3) @ v).transpose(1, 2).flatten(2)

    def timed(attend):
        def run():
            with torch.set_grad_enabled(backward):
                out = attend()
            return torch.autograd.grad(out, qkv, grad) if backward else out

        return run

    return {"fastdiff": timed(lambda: ops.attention(qkv, heads, layout="legacy")), "torch": timed(plain)}


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("direction", ["forward", "both"])
def test_attention_speed(contest, direction, shape, arm):
    size = SHAPES[shape]
    elements = size[0] * size[1] * size[2]
    # Forward: read qkv, write the result. Backward: read both and the gradient, write that of qkv.
    moved = (16 if direction == "forward" else 48) * elements
    contest(arms(size, direction == "both"), arm, group=f"attention {direction} {shape}", bytes_moved=moved)
