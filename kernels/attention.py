"""Attention on a GPU, forward: one pass over keys and values per tile of queries; scores stay on chip."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import AttentionCall
from fastdiff.kernels.attention_tiles import (
    LN_2,
    LOG2_E,
    cut_tiles,
    dot_slices,
    load_tile,
    place,
    store_tile,
)
from fastdiff.tensors import empty_output, split_heads, split_qkv


@triton.jit(do_not_specialize=["num_heads", "num_tiles"])
def _attention_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
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
    """out = softmax(scale q k^T) v and lse = log sum_j exp(scale q k_j), for one tile of queries and chunk of v.

    q, k, v: [B, heads, S, HEAD_DIM] of common strides in_*; out: the same shape with strides out_*; lse: float32
    [B, heads, S]. A program makes OWN queries by BLOCK_D channels of out and takes OTHER keys at a time. Scores, the
    running maximum, sum and result are float32; the shares are rounded to v's type for the second product, after the
    scores were scaled in float32, so float16 cannot overflow.

    FLOP: 2 (1 + CHUNKS) S^2 d per head, since every chunk needs all scores; CHUNKS is 1 up to d = 256 in 16 bits.
    Bytes: q and out once, k and v once per tile of queries, mostly from the cache; floor: 8 S d per head
    in 16 bits / bandwidth, or 4 S^2 d / peak, which is larger for S above some 370 on an H200 (paper arithmetic).
    """
    tile, chunk, pair, sample, head = place(num_tiles, num_heads, CHUNKS)
    first = tile * OWN
    start = sample * in_batch + head * in_head
    k_ptr += start
    v_ptr += start
    q_ptr += start + tile.to(tl.int64) * OWN * in_token
    left = num_tokens - first
    # exp(x) = exp2(x log2(e)), and exp2 is an instruction.
    scale *= LOG2_E

    if BLOCK_K == BLOCK_D:
        q = load_tile(q_ptr, left, 0, in_token, in_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN, WIDEN)
    largest = tl.full([OWN], float("-inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    result = tl.zeros([OWN, BLOCK_D], tl.float32)
    for other in range(0, num_tokens, OTHER):
        there = num_tokens - other
        if BLOCK_K == BLOCK_D:
            k = load_tile(k_ptr, there, chunk, in_token, in_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
        else:
            scores = dot_slices(
                q_ptr, k_ptr, left, there, in_token, in_channel, in_token, in_channel,
                OWN, OTHER, BLOCK_K, HEAD_DIM, EVEN_OWN, EVEN_OTHER, PRECISION, WIDEN,
            )  # fmt: skip
        if not EVEN_OTHER:
            scores = tl.where(tl.arange(0, OTHER)[None, :] < there, scores, float("-inf"))
        previous = largest
        largest = tl.maximum(previous, tl.max(scores, 1) * scale)
        shares = tl.exp2(scores * scale - largest[:, None])
        shrink = tl.exp2(previous - largest)
        total = total * shrink + tl.sum(shares, 1)
        v = load_tile(v_ptr, there, chunk, in_token, in_channel, OTHER, BLOCK_D, HEAD_DIM, EVEN_OTHER, WIDEN)
        result = tl.dot(shares.to(v.dtype), v, result * shrink[:, None], input_precision=PRECISION)
        k_ptr += OTHER * in_token
        v_ptr += OTHER * in_token

    out_ptr += sample * out_batch + head * out_head + tile.to(tl.int64) * OWN * out_token
    result = result / total[:, None]
    store_tile(out_ptr, result, left, chunk, out_token, out_channel, OWN, BLOCK_D, HEAD_DIM, EVEN_OWN)
    if chunk == 0:
        queries = tl.arange(0, OWN)
        lse = (largest + tl.log2(total)) * LN_2
        tl.store(lse_ptr + pair.to(tl.int64) * num_tokens + first + queries, lse, mask=queries < left)


def launch_attention(call: AttentionCall, out: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops.attention`, and the log-sum-exp [B, heads, S].

    Args:
        call: The op's arguments.
        out: Where to write both, the first of any strides; then nothing is allocated.

    Raises:
        ValueError: a head size or a type that the kernel does not take.
    """
    qkv, num_heads, layout, scale = call
    q, k, v = split_qkv(qkv, num_heads, layout)
    cut = cut_tiles("forward", q)
    if out is None:
        lse = torch.empty_like(q[..., 0], dtype=torch.float32, memory_format=torch.contiguous_format)
        out = empty_output(qkv), lse
    if qkv.numel() == 0:
        return out
    heads = split_heads(out[0], num_heads)
    with torch.cuda.device_of(qkv):
        _attention_kernel[(q.shape[0] * num_heads * cut.chunks * cut.num_tiles,)](
            q,
            k,
            v,
            heads,
            out[1],
            scale,
            q.shape[2],
            num_heads,
            cut.num_tiles,
            *q.stride(),
            *heads.stride(),
            **cut.constants(),
        )
    return out
