"""The op `attention`: softmax self-attention on a packed qkv, and its gradient."""

from __future__ import annotations

import importlib.util
import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.calls import AttentionBackwardCall, AttentionCall
from fastdiff.ops._arguments import describe
from fastdiff.ops._dispatch import (
    LIBRARY,
    define,
    differentiate,
    dispatch,
    gradients,
    has_extension,
    refuse_second_derivative,
)
from fastdiff.ops.reference import attention as reference
from fastdiff.tensors import (
    FLOAT_DTYPES,
    MAX_HEAD_DIM,
    PACKINGS,
    QkvLayout,
    compute_dtype,
    empty_output,
    empty_packed,
    is_channel_major,
    split_qkv,
)

AttentionImplementation = Literal["auto", "reference", "sdpa", "cpu", "triton"]

_HAS_TRITON = importlib.util.find_spec("triton") is not None
# Channels of a head come in whole vectors.
VECTOR = 16

LIBRARY.define(
    "attention_out(Tensor qkv, int num_heads, bool heads_first, float scale, Tensor(a!) out, Tensor(b!) lse) -> ()"
)
LIBRARY.define(
    "attention_backward_out(Tensor grad, Tensor qkv, Tensor out, Tensor lse, int num_heads, bool heads_first, "
    "float scale, Tensor(a!) grad_qkv) -> ()"
)


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
            alone, forward and backward, and has no second derivative. "cpu" is the same in C++, which the U-Net trains
            with: see `trains_on_cpu` for what it takes. "reference" keeps all scores. "auto": "sdpa", but "triton"
            where PyTorch's flash kernels refuse, which is 16-bit heads above 256 channels on a GPU.

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
    call = AttentionCall(qkv, num_heads, layout, scale)
    if implementation == "sdpa":
        return _sdpa(call)
    if implementation not in ("reference", "cpu", "triton"):
        raise ValueError(
            f"implementation must be 'auto', 'reference', 'sdpa', 'cpu' or 'triton', got {implementation!r}"
        )
    if implementation == "cpu" and has_extension() and not _runs_on_cpu(call):
        raise ValueError(
            f"the C++ kernels take float32 on the CPU, heads of whole {VECTOR}s of channels and any layout but 'edm', "
            f"got {describe(qkv)}, {head_dim} channels and layout {layout!r}: use implementation 'sdpa'"
        )
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
    out: Tensor = dispatch(call, implementation)[0]
    return out


def trains_on_cpu(qkv: Tensor, num_heads: int, layout: QkvLayout) -> bool:
    """Whether `attention` has C++ kernels with a gradient for such a qkv: float32 on the CPU, heads of sixteens.

    An element of the result or of the gradient is the same sum in the same order whatever the number of threads. They
    have no second derivative; nothing is computed by them under autocast or in the layout "edm".
    """
    call = AttentionCall(qkv, num_heads, layout, 1.0)
    return has_extension() and _runs_on_cpu(call) and not torch.is_autocast_enabled("cpu")


def _runs_on_cpu(call: AttentionCall | AttentionBackwardCall) -> bool:
    qkv = call.qkv
    fits = qkv.device.type == "cpu" and qkv.dtype == torch.float32
    return fits and qkv.shape[2] % (3 * VECTOR * call.num_heads) == 0 and call.layout != "edm"


def _choose(qkv: Tensor, head_dim: int) -> Literal["sdpa", "triton"]:
    """The faster implementation for a shape. No GPU has measured it yet.

    PyTorch's flash kernels take 16-bit heads of up to 256 channels, and its memory-efficient ones are the peer in
    float32.
    """
    is_wide = 256 < head_dim <= MAX_HEAD_DIM and head_dim % 16 == 0
    if qkv.device.type == "cuda" and _HAS_TRITON and is_wide and qkv.dtype in (torch.bfloat16, torch.float16):
        return "triton"
    return "sdpa"


def _sdpa(call: AttentionCall) -> Tensor:
    q, k, v = split_qkv(call.qkv, call.num_heads, call.layout)
    out = F.scaled_dot_product_attention(q, k, v, scale=call.scale)
    if is_channel_major(call.qkv):
        return out.transpose(2, 3).flatten(1, 2).transpose(1, 2)
    return out.transpose(1, 2).flatten(2)


def _reference(call: AttentionCall) -> tuple[Tensor, Tensor]:
    out, lse = reference.attention(call)
    return empty_output(call.qkv).copy_(out), lse.contiguous()


def _fake(call: AttentionCall) -> tuple[Tensor, Tensor]:
    batch, num_tokens, _ = call.qkv.shape
    lse = call.qkv.new_empty((batch, call.num_heads, num_tokens), dtype=compute_dtype(call.qkv))
    return empty_output(call.qkv), lse


def _cpu(call: AttentionCall) -> tuple[Tensor, Tensor]:
    if not _runs_on_cpu(call):
        return _reference(call)
    qkv = call.qkv.contiguous()
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    lse = qkv.new_empty(qkv.shape[0], call.num_heads, qkv.shape[1])
    heads_first = call.layout == "legacy"
    torch.ops.fastdiff.attention_out(qkv, call.num_heads, heads_first, call.scale, out, lse)
    return (empty_output(call.qkv).copy_(out) if is_channel_major(call.qkv) else out), lse


def _backward_cpu(call: AttentionBackwardCall) -> Tensor:
    if not _runs_on_cpu(call):
        return _backward_reference(call)
    qkv, grad, out, lse = (x.contiguous() for x in (call.qkv, call.grad, call.out, call.lse))
    grad_qkv, heads_first = torch.empty_like(qkv), call.layout == "legacy"
    torch.ops.fastdiff.attention_backward_out(grad, qkv, out, lse, call.num_heads, heads_first, call.scale, grad_qkv)
    return empty_packed(call.qkv).copy_(grad_qkv) if is_channel_major(call.qkv) else grad_qkv


def _backward_reference(call: AttentionBackwardCall) -> Tensor:
    return empty_packed(call.qkv).copy_(reference.attention_backward(call))


def _backward_fake(call: AttentionBackwardCall) -> Tensor:
    return empty_packed(call.qkv)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    call = AttentionCall(*inputs)
    ctx.save_for_backward(call.qkv, *output)
    ctx.options = call.num_heads, call.layout, call.scale
    ctx.mark_non_differentiable(output[1])


def _backward(ctx: Any, grad: Tensor, grad_lse: Tensor | None) -> tuple[Tensor | None, ...]:
    grad_qkv = dispatch(AttentionBackwardCall(grad, *ctx.saved_tensors, *ctx.options))
    return gradients(AttentionCall, qkv=grad_qkv)


define("attention", AttentionCall, _reference, _fake, cpu=_cpu, kernel="attention")
define(
    "attention_backward",
    AttentionBackwardCall,
    _backward_reference,
    _backward_fake,
    cpu=_backward_cpu,
    kernel="attention_backward",
)
differentiate(AttentionCall, _backward, _setup)
refuse_second_derivative("attention_backward", "attention has")
