"""Attention on a GPU, backward: scores are computed again from q, k and the log-sum-exp, which the forward pass saved.

Two kernels: one by tiles of queries for dq, which also leaves the rows' sums of out times its gradient, and one by
tiles of keys for dk and dv, together or apart. No atomics: gradients are the same at every run.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import AttentionBackwardCall
from fastdiff.kernels.attention_tiles import (
    LOG2_E,
    backward_kernels,
    cut_tiles,
    dot_slices,
    load_tile,
    place,
    store_tile,
)
from fastdiff.tensors import empty_packed, split_heads, split_qkv


@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def _dq_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dq_ptr,
    scale,
    num_tokens,
    num_heads,
    num_tiles,
    in_batch,
    in_head,
    in_token,
    in_channel,
    out_batch,
    out_head,
    out_token,
    out_channel,
    grad_batch,
    grad_head,
    grad_token,
    grad_channel,
    d_batch,
    d_head,
    d_token,
    d_channel,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    EVEN_OWN: tl.constexpr,
    EVEN_OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dq = scale ds k with ds = p (grad v^T - delta), p = exp(scale q k^T - lse), delta = rows' sums of out grad.

    q, k, v, out, grad (of out) and dq: [B, heads, S, HEAD_DIM] with strides in_*, out_*, grad_*, d_*; lse, delta:
    float32 [B, heads, S]; delta is written. A program makes OWN queries by BLOCK_D channels of dq and takes OTHER keys
    at a time. Accumulators are float32; ds is rounded to k's type for its product.

    FLOP: 2 (1 + 2 CHUNKS) S^2 d per head. Bytes: q, out, grad and dq once, k and v once per tile of queries, mostly
    from the cache; floor: 12 S d per head in 16 bits / bandwidth, or 6 S^2 d / peak.
    """
    tile, chunk, pair, sample, head = place(num_tiles, num_heads, CHUNKS)
    first = tile * OWN
    left = num_tokens - first
    own = tile.to(tl.int64) * OWN
    k_ptr += sample * in_batch + head * in_head
    v_ptr += sample * in_batch + head * in_head
    q_ptr += sample * in_batch + head * in_head + own * in_token
    grad_ptr += sample * grad_batch + head * grad_head + own * grad_token
    out_ptr += sample * out_batch + head * out_head + own * out_token
    rows = pair.to(tl.int64) * num_tokens + first + tl.arange(0, OWN)
    there = tl.arange(0, OWN) < left

    if BLOCK_K == BLOCK_D:
        out = load_tile(out_ptr, left, 0, out_token, out_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)
        grad = load_tile(grad_ptr, left, 0, grad_token, grad_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)
        delta = tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    else:
        delta = tl.zeros([OWN], tl.float32)
        for part in range(0, (HEAD_DIM + BLOCK_K - 1) // BLOCK_K):
            out = load_tile(out_ptr, left, part, out_token, out_channel, OWN, BLOCK_K, HEAD_DIM, EVEN_OWN, WIDEN)
            grad = load_tile(grad_ptr, left, part, grad_token, grad_channel, OWN, BLOCK_K, HEAD_DIM, EVEN_OWN, WIDEN)
            delta += tl.sum(out.to(tl.float32) * grad.to(tl.float32), 1)
    if chunk == 0:
        tl.store(delta_ptr + rows, delta, mask=there)
    lse = tl.load(lse_ptr + rows, mask=there, other=0.0) * LOG2_E
    if BLOCK_K == BLOCK_D:
        q = load_tile(q_ptr, left, chunk, in_token, in_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)

    dq = tl.zeros([OWN, BLOCK_D], tl.float32)
    for other in range(0, num_tokens, OTHER):
        ahead = num_tokens - other
        k = load_tile(k_ptr, ahead, chunk, in_token, in_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
        if BLOCK_K == BLOCK_D:
            v = load_tile(v_ptr, ahead, chunk, in_token, in_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
            dp = tl.dot(grad, tl.trans(v), input_precision=PRECISION)
        else:
            scores = dot_slices(
                q_ptr, k_ptr, left, ahead, in_token, in_channel, in_token, in_channel,
                OWN, OTHER, BLOCK_K, HEAD_DIM, EVEN_OWN, EVEN_OTHER, PRECISION, WIDEN,
            )  # fmt: skip
            dp = dot_slices(
                grad_ptr, v_ptr, left, ahead, grad_token, grad_channel, in_token, in_channel,
                OWN, OTHER, BLOCK_K, HEAD_DIM, EVEN_OWN, EVEN_OTHER, PRECISION, WIDEN,
            )  # fmt: skip
        ds = tl.exp2(scores * (scale * LOG2_E) - lse[:, None]) * (dp - delta[:, None])
        if not EVEN_OTHER:
            ds = tl.where(tl.arange(0, OTHER)[None, :] < ahead, ds, 0.0)
        dq = tl.dot(ds.to(k.dtype), k, dq, input_precision=PRECISION)
        k_ptr += OTHER * in_token
        v_ptr += OTHER * in_token

    dq_ptr += sample * d_batch + head * d_head + own * d_token
    store_tile(dq_ptr, dq * scale, left, chunk, d_token, d_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN)


@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def _dkv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    grad_ptr,
    lse_ptr,
    delta_ptr,
    dk_ptr,
    dv_ptr,
    scale,
    num_tokens,
    num_heads,
    num_tiles,
    in_batch,
    in_head,
    in_token,
    in_channel,
    grad_batch,
    grad_head,
    grad_token,
    grad_channel,
    d_batch,
    d_head,
    d_token,
    d_channel,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
    CHUNKS: tl.constexpr,
    OWN: tl.constexpr,
    OTHER: tl.constexpr,
    EVEN_OWN: tl.constexpr,
    EVEN_OTHER: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """dv = p^T grad and dk = scale ds^T q, with p, ds, delta and all tensors as in `_dq_kernel`, which runs before.

    Either of dk_ptr and dv_ptr may be None. A program makes OWN keys by BLOCK_D channels of dk and dv and takes OTHER
    queries at a time. All of it is transposed, so that the sums have keys for rows. Accumulators are float32; p and ds
    are rounded to the tensors' types for their products.

    FLOP: 4 (1 + CHUNKS) S^2 d per head for both; 2 (1 + 2 CHUNKS) S^2 d for dk alone and 2 (1 + CHUNKS) S^2 d for dv.
    Bytes: k, v, dk and dv once, q and grad once per tile of keys, mostly from the cache; floor: 12 S d per head in 16
    bits / bandwidth, or 8 S^2 d / peak.
    """
    tile, chunk, pair, sample, head = place(num_tiles, num_heads, CHUNKS)
    left = num_tokens - tile * OWN
    own = tile.to(tl.int64) * OWN
    q_ptr += sample * in_batch + head * in_head
    grad_ptr += sample * grad_batch + head * grad_head
    k_ptr += sample * in_batch + head * in_head + own * in_token
    v_ptr += sample * in_batch + head * in_head + own * in_token
    lse_ptr += pair.to(tl.int64) * num_tokens
    delta_ptr += pair.to(tl.int64) * num_tokens

    if BLOCK_K == BLOCK_D:
        k = load_tile(k_ptr, left, 0, in_token, in_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)
        if dk_ptr is not None:
            v = load_tile(v_ptr, left, 0, in_token, in_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)
    if dk_ptr is not None:
        dk = tl.zeros([OWN, BLOCK_D], tl.float32)
    if dv_ptr is not None:
        dv = tl.zeros([OWN, BLOCK_D], tl.float32)
    for other in range(0, num_tokens, OTHER):
        ahead = num_tokens - other
        queries = tl.arange(0, OTHER)
        # A query that is not there has p = exp(0 - infinity) = 0.
        lse = tl.load(lse_ptr + other + queries, mask=queries < ahead, other=float("inf")) * LOG2_E
        q = load_tile(q_ptr, ahead, chunk, in_token, in_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
        if BLOCK_K == BLOCK_D:
            scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)
        else:
            scores = dot_slices(
                k_ptr, q_ptr, left, ahead, in_token, in_channel, in_token, in_channel,
                OWN, OTHER, BLOCK_K, HEAD_DIM, EVEN_OWN, EVEN_OTHER, PRECISION, WIDEN,
            )  # fmt: skip
        p = tl.exp2(scores * (scale * LOG2_E) - lse[None, :])
        grad = load_tile(grad_ptr, ahead, chunk, grad_token, grad_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
        if dv_ptr is not None:
            dv = tl.dot(p.to(grad.dtype), grad, dv, input_precision=PRECISION)
        if dk_ptr is not None:
            delta = tl.load(delta_ptr + other + queries, mask=queries < ahead, other=0.0)
            if BLOCK_K == BLOCK_D:
                dp = tl.dot(v, tl.trans(grad), input_precision=PRECISION)
            else:
                dp = dot_slices(
                    v_ptr, grad_ptr, left, ahead, in_token, in_channel, grad_token, grad_channel,
                    OWN, OTHER, BLOCK_K, HEAD_DIM, EVEN_OWN, EVEN_OTHER, PRECISION, WIDEN,
                )  # fmt: skip
            ds = p * (dp - delta[None, :])
            dk = tl.dot(ds.to(q.dtype), q, dk, input_precision=PRECISION)
        q_ptr += OTHER * in_token
        grad_ptr += OTHER * grad_token

    start = sample * d_batch + head * d_head + own * d_token
    if dk_ptr is not None:
        store_tile(dk_ptr + start, dk * scale, left, chunk, d_token, d_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN)
    if dv_ptr is not None:
        store_tile(dv_ptr + start, dv, left, chunk, d_token, d_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN)


def launch_attention_backward(call: AttentionBackwardCall) -> Tensor:
    """Run the op on a GPU: the gradient of qkv from that of out, both packed and laid out as they are.

    Raises:
        ValueError: a head size or a type that the kernels do not take.
    """
    grad, qkv, out, lse, num_heads, layout, scale = call
    q, k, v = split_qkv(qkv, num_heads, layout)
    cut = cut_tiles("dq", q)
    grad_qkv = empty_packed(qkv)
    if qkv.numel() == 0:
        return grad_qkv
    dq, dk, dv = split_qkv(grad_qkv, num_heads, layout)
    out_heads, grad_heads = split_heads(out, num_heads), split_heads(grad, num_heads)
    delta = torch.empty_like(lse)
    pairs = q.shape[0] * num_heads
    sizes = (scale, q.shape[2], num_heads)
    with torch.cuda.device_of(qkv):
        _dq_kernel[(pairs * cut.chunks * cut.num_tiles,)](
            q,
            k,
            v,
            out_heads,
            grad_heads,
            lse,
            delta,
            dq,
            *sizes,
            cut.num_tiles,
            *q.stride(),
            *out_heads.stride(),
            *grad_heads.stride(),
            *dq.stride(),
            **cut.constants(),
        )
        for kernel in backward_kernels(q):
            cut = cut_tiles(kernel, q)
            _dkv_kernel[(pairs * cut.chunks * cut.num_tiles,)](
                q,
                k,
                v,
                grad_heads,
                lse,
                delta,
                None if kernel == "dv" else dk,
                None if kernel == "dk" else dv,
                *sizes,
                cut.num_tiles,
                *q.stride(),
                *grad_heads.stride(),
                *dk.stride(),
                **cut.constants(),
            )
    return grad_qkv
