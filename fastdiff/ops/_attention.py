"""The op `attention`: softmax self-attention on a packed qkv, and its gradient."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.ops._arguments import describe
from fastdiff.ops._dispatch import define, dispatch
from fastdiff.ops.reference import attention as reference_attention
from fastdiff.tensors import (
    FLOAT_DTYPES,
    MAX_HEAD_DIM,
    PACKINGS,
    QkvLayout,
    empty_output,
    empty_packed,
    is_channel_major,
    split_qkv,
)

AttentionImplementation = Literal["auto", "reference", "sdpa", "triton"]

_SCHEMA = "(Tensor qkv, int num_heads, str layout, float scale) -> (Tensor, Tensor)"
_BACKWARD_SCHEMA = "(Tensor grad, Tensor qkv, Tensor out, Tensor lse, int num_heads, str layout, float scale) -> Tensor"
_HAS_TRITON = importlib.util.find_spec("triton") is not None


def attention(
    qkv: Tensor,
    num_heads: int,
    *,
    layout: QkvLayout = "separate",
    scale: float | None = None,
    implementation: AttentionImplementation = "auto",
) -> Tensor:
    """Self-attention between all tokens: softmax(scale q k^T) v for each head.

    q, k and v are read where they lie, whatever the strides of qkv. An image [B, 3C, H, W] in NCHW memory is
    `x.flatten(2).transpose(1, 2)`, in channels_last memory the same, and neither is copied. Scores, softmax and sums
    are in float32, or float64 for float64.

    Args:
        qkv: Packed [B, S, 3C], float32, bfloat16, float16 or float64, any S.
        num_heads: Heads of d = C / num_heads channels.
        layout: Order of the 3C channels. "separate" and "new": (q k v), head, channel. "legacy": head, (q k v),
            channel. "edm": head, channel, (q k v), of which the Triton kernels read and write single elements.
        scale: Factor on the scores, finite and above 0; d^-1/2 when None.
        implementation: "sdpa" is PyTorch's `scaled_dot_product_attention`, on any device and for any d. "triton" is
            fastdiff's own, on a GPU, for d a multiple of 16 up to 512; it needs the memory of qkv and of its results
            alone, forward and backward, and has no second derivative. "reference" keeps all scores. "auto": "sdpa",
            but "triton" where PyTorch's flash kernels refuse, which is 16-bit heads above 256 channels on a GPU.

    Returns:
        [B, S, C] in qkv's type, heads one after the other; in memory [B, C, S] where qkv is [B, 3C, S], else
        contiguous.

    Raises:
        ValueError: shapes, types or values that do not fit, or a head size that "triton" does not take.
        RuntimeError: the named implementation is not available.

    Source: Vaswani et al. (2017), arXiv:1706.03762, eq. 1; in tiles: Dao et al. (2022), arXiv:2205.14135.
    """
    if qkv.ndim != 3:
        raise ValueError(f"qkv must be [B, S, 3C], got shape {list(qkv.shape)}")
    if qkv.dtype not in FLOAT_DTYPES:
        raise ValueError(f"qkv must be float32, bfloat16, float16 or float64, got {qkv.dtype}")
    if num_heads < 1 or qkv.shape[2] == 0 or qkv.shape[2] % (3 * num_heads):
        raise ValueError(
            f"qkv must have a multiple of 3 * num_heads = {3 * num_heads} channels, got {describe(qkv)}; "
            "num_heads must divide C"
        )
    if layout not in PACKINGS:
        raise ValueError(f"layout must be one of {', '.join(PACKINGS)}, got {layout!r}")
    head_dim = qkv.shape[2] // (3 * num_heads)
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be finite and above 0, got {scale}")
    if implementation == "auto":
        implementation = _choose(qkv, head_dim)
    if implementation == "sdpa":
        return _sdpa(qkv, num_heads, layout, scale)
    if implementation not in ("reference", "triton"):
        raise ValueError(f"implementation must be 'auto', 'reference', 'sdpa' or 'triton', got {implementation!r}")
    if implementation == "triton":
        if qkv.dtype == torch.float64:
            raise ValueError(
                "the GPU kernels compute in float32: run float64 with implementation 'sdpa' or 'reference'"
            )
        if head_dim % 16 or head_dim > MAX_HEAD_DIM:
            raise ValueError(
                f"the GPU kernels take head sizes that are multiples of 16, 16 to {MAX_HEAD_DIM}, got {head_dim}: "
                "use implementation 'sdpa'"
            )
    out: Tensor = dispatch("attention", qkv, implementation, (qkv, num_heads, layout, scale))[0]
    return out


def _choose(qkv: Tensor, head_dim: int) -> Literal["sdpa", "triton"]:
    """The faster implementation for a shape. No GPU has measured it yet.

    PyTorch's flash kernels take 16-bit heads of up to 256 channels, and its memory-efficient ones are the peer in
    float32.
    """
    is_wide = 256 < head_dim <= MAX_HEAD_DIM and head_dim % 16 == 0
    if qkv.device.type == "cuda" and _HAS_TRITON and is_wide and qkv.dtype in (torch.bfloat16, torch.float16):
        return "triton"
    return "sdpa"


def _sdpa(qkv: Tensor, num_heads: int, layout: str, scale: float) -> Tensor:
    q, k, v = split_qkv(qkv, num_heads, layout)
    out = F.scaled_dot_product_attention(q, k, v, scale=scale)
    if is_channel_major(qkv):
        return out.transpose(2, 3).flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).flatten(2)


def _reference(qkv: Tensor, num_heads: int, layout: str, scale: float) -> tuple[Tensor, Tensor]:
    out, lse = reference_attention.attention(qkv, num_heads, layout, scale)
    return empty_output(qkv).copy_(out), lse.contiguous()


def _fake(qkv: Tensor, num_heads: int, layout: str, scale: float) -> tuple[Tensor, Tensor]:
    dtype = torch.float64 if qkv.dtype == torch.float64 else torch.float32
    return empty_output(qkv), qkv.new_empty((qkv.shape[0], num_heads, qkv.shape[1]), dtype=dtype)


def _backward_reference(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, layout: str, scale: float
) -> Tensor:
    grad_qkv = reference_attention.attention_backward(grad, qkv, out, lse, num_heads, layout, scale)
    return empty_packed(qkv).copy_(grad_qkv)


def _backward_fake(
    grad: Tensor, qkv: Tensor, out: Tensor, lse: Tensor, num_heads: int, layout: str, scale: float
) -> Tensor:
    return empty_packed(qkv)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, ctx.num_heads, ctx.layout, ctx.scale = inputs
    ctx.save_for_backward(qkv, *output)
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    arguments = (grad, *ctx.saved_tensors, ctx.num_heads, ctx.layout, ctx.scale)
    return torch.ops.fastdiff.attention_backward(*arguments), None, None, None


define("attention", _SCHEMA, _reference, _fake)
define("attention_backward", _BACKWARD_SCHEMA, _backward_reference, _backward_fake)
torch.library.register_autograd("fastdiff::attention", _backward, setup_context=_setup)
