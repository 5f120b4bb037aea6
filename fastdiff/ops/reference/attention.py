"""The oracle of attention: softmax attention and its gradient in plain PyTorch.

float32 arithmetic, float64 for float64 input. Nothing is blocked: all S x S scores are kept.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import AttentionBackwardCall, AttentionCall
from fastdiff.tensors import compute_dtype, empty_packed, split_heads, split_qkv


def attention(call: AttentionCall) -> tuple[Tensor, Tensor]:
    """out = softmax(scale q k^T) v per head, and the log-sum-exp of the scaled scores.

    Args:
        call: As for `fastdiff.ops.attention`.

    Returns:
        (out [B, S, C], lse [B, num_heads, S]) in the dtype of the arithmetic.

    Source: Vaswani et al. (2017), arXiv:1706.03762, eq. 1.
    """
    q, k, v = split_qkv(call.qkv.to(compute_dtype(call.qkv)), call.num_heads, call.layout)
    scores = call.scale * (q @ k.transpose(2, 3))
    out = scores.softmax(3) @ v
    return out.transpose(1, 2).flatten(2), scores.logsumexp(3)


def attention_backward(call: AttentionBackwardCall) -> Tensor:
    """The gradient of qkv from that of `attention`'s first result.

    With p = exp(scale q k^T - lse) and delta = the sum of out * grad over a head's channels:
    dv = p^T grad, ds = p (grad v^T - delta), dq = scale ds k, dk = scale ds^T q.

    Args:
        call: With `attention`'s results and the gradient of the first.

    Returns:
        [B, S, 3C], packed as qkv, in the dtype of the arithmetic.

    Source: Dao et al. (2022), arXiv:2205.14135, appendix B.2.
    """
    _, qkv, _, _, num_heads, layout, scale = call
    dtype = compute_dtype(qkv)
    q, k, v = split_qkv(qkv.to(dtype), num_heads, layout)
    out, grad = (split_heads(x.to(dtype), num_heads) for x in (call.out, call.grad))
    p = torch.exp(scale * (q @ k.transpose(2, 3)) - call.lse.to(dtype)[..., None])
    ds = p * (grad @ v.transpose(2, 3) - (out * grad).sum(3, keepdim=True))
    parts = (scale * (ds @ k), scale * (ds.transpose(2, 3) @ q), p.transpose(2, 3) @ grad)
    grad_qkv = empty_packed(qkv, dtype=dtype)
    for view, part in zip(split_qkv(grad_qkv, num_heads, layout), parts, strict=True):
        view.copy_(part)
    return grad_qkv
