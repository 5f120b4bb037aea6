"""Losses of each sample on a GPU: every tensor read once, a number per tile written."""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastdiff.calls import BoundLossCall, BoundTermsCall, MseCall
from fastdiff.kernels.bound_terms import bin_log_probability, density, load_rows, normal_kl, output_places
from fastdiff.kernels.launching import cdiv, dense
from fastdiff.kernels.tiles import BLOCK, contiguous_tile
from fastdiff.tensors import memory_format


@triton.jit(do_not_specialize=["num_timesteps", "num_tiles"])
def _losses_kernel(
    output_ptr,
    target_ptr,
    x0_ptr,
    x_t_ptr,
    t_ptr,
    table_ptr,
    squares_ptr,
    nats_ptr,
    misses_ptr,
    per_element,
    per_element_bits,
    num_timesteps,
    num_elements,
    num_tiles,
    CLIP: tl.constexpr,
    LEARNED: tl.constexpr,
    DISCRETE: tl.constexpr,
    LEVELS: tl.constexpr,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A tile's parts of means over a sample: of (m - target)^2 where target_ptr is given, of the bound's term in bits
    where x0_ptr is, and of (mu - x_0)^2 where misses_ptr is: sums times per_element or per_element_bits.

        mu  = clamp(px x_t + pm m, -CLIP, CLIP),  logvar = v log_max + (1 - v) log_min, v = (second half + 1) / 2
        t>0:  KL(N(coef1 x_0, exp(log_q)) || N(coef1 mu, exp(logvar)))
        t=0:  -log P(bin of x_0) under N(mu, exp(logvar)), or -log of the density where not DISCRETE

    (coef1, log_q, log_min, log_max, px, pm) = table[t]. target, x0, x_t: [B, num_elements] in one order; the output
    the same or, LEARNED, [B, 2 num_elements], in channels_last memory (CHANNELS != 0) interleaved by pixel. t: int64
    [B]; table: float32 [T, 6]; squares, nats, misses: float32 [B, num_tiles]. A t out of range gives NaN. All
    arithmetic in float32.

    Bytes: every element of the output, target, x_0 and x_t read once, 8 per tile written. Floor: those bytes /
    bandwidth, 8 per element for the squares in float32, 20 for both terms with a learned variance. The bin's
    probability costs about 150 instructions per element, in samples with t = 0 alone.

    Access width: 16 bytes where num_elements is a multiple of 16; the output of a learned variance in channels_last
    memory by single elements, in runs of CHANNELS.
    """
    sample = tl.program_id(0) // num_tiles
    first, offsets, mask = contiguous_tile(tl.program_id(0) % num_tiles, num_elements, BLOCK)
    start = sample.to(tl.int64) * num_elements
    here = start + first
    if LEARNED:
        output_ptr += start
    places = output_places(first, offsets, CHANNELS, LEARNED, BLOCK)
    m = tl.load(output_ptr + start + places, mask=mask, other=0.0).to(tl.float32)
    if target_ptr is not None:
        difference = m - tl.load(target_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32)
        squares = tl.sum(tl.where(mask, difference * difference, 0.0), axis=0)
        tl.store(squares_ptr + tl.program_id(0), squares * per_element)
    if x0_ptr is not None:
        t = tl.load(t_ptr + sample)
        coef1, log_q, log_min, log_max, px, pm = load_rows(table_ptr, t, num_timesteps)
        x0 = tl.load(x0_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32)
        mu = px * tl.load(x_t_ptr + here + offsets, mask=mask, other=0.0).to(tl.float32) + pm * m
        if CLIP is not None:
            mu = tl.where(mu > CLIP, CLIP, mu)
            mu = tl.where(mu < -CLIP, -CLIP, mu)
        if misses_ptr is not None:
            miss = mu - x0
            misses = tl.sum(tl.where(mask, miss * miss, 0.0), axis=0)
            tl.store(misses_ptr + tl.program_id(0), misses * per_element)
        log_variance = tl.zeros_like(m) + log_min
        if LEARNED:
            behind = num_elements if CHANNELS == 0 else CHANNELS
            share = tl.load(output_ptr + start + behind + places, mask=mask, other=0.0).to(tl.float32) * 0.5 + 0.5
            log_variance = share * log_max + (1 - share) * log_min
        if t == 0:
            if DISCRETE:
                nats = -bin_log_probability(x0, mu, 0.5 * log_variance, LEVELS)
            else:
                nats = -density(x0, mu, 0.5 * log_variance)
        else:
            nats = normal_kl(coef1 * (x0 - mu), log_q, log_variance)
        tl.store(nats_ptr + tl.program_id(0), tl.sum(tl.where(mask, nats, 0.0), axis=0) * per_element_bits)


def launch_mse(call: MseCall) -> Tensor:
    """Run the op on a GPU; arguments and result as in `fastdiff.ops.mse`. Raises ValueError for float64."""
    return _launch(call.output, call.target, None, scores_x0=False)[0]


def launch_bound_loss(call: BoundLossCall) -> tuple[Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops`. Raises ValueError for float64."""
    return _launch(call.output, call.target, call.terms(), scores_x0=False)[:2]


def launch_bound_terms(call: BoundTermsCall) -> tuple[Tensor, Tensor]:
    """Run the op on a GPU; arguments and results as in `fastdiff.ops`. Raises ValueError for float64."""
    return _launch(call.output, None, call, scores_x0=True)[1:]


def _launch(
    output: Tensor, target: Tensor | None, terms: BoundTermsCall | None, *, scores_x0: bool
) -> tuple[Tensor, Tensor, Tensor]:
    if output.dtype == torch.float64:
        raise ValueError("the GPU kernels compute in float32: run float64 tensors with implementation='reference'")
    x0 = x_t = t = table = clip = None
    learned, discrete, levels = False, True, 256
    if terms is not None:
        _, x0, x_t, t, table, clip, learned, decoder, levels = terms
        discrete = decoder == "discrete"
    layout = memory_format(output)
    output = dense(output, layout)
    target, x0, x_t = (None if v is None else dense(v, layout) for v in (target, x0, x_t))
    batch, wanted = output.shape[0], (target is not None, x0 is not None, scores_x0)
    num_elements = output[0].numel() // (2 if learned else 1) if batch else 0
    if batch == 0 or num_elements == 0:
        # Means of nothing, and sums of nothing.
        results = [output.new_full((batch,) if w else (0,), math.nan, dtype=torch.float32) for w in wanted]
        return results[0], results[1], results[2]
    num_tiles = cdiv(num_elements, BLOCK)
    parts = torch.empty((sum(wanted), batch, num_tiles), dtype=torch.float32, device=output.device)
    places = iter(parts)
    squares, nats, misses = (next(places) if w else None for w in wanted)
    with torch.cuda.device_of(output):
        _losses_kernel[(batch * num_tiles,)](
            output,
            target,
            x0,
            x_t,
            None if t is None else t.contiguous(),
            None if table is None else table.contiguous(),
            squares,
            nats,
            misses,
            1 / num_elements,
            1 / (num_elements * math.log(2.0)),
            0 if table is None else table.shape[0],
            num_elements,
            num_tiles,
            CLIP=clip,
            LEARNED=learned,
            DISCRETE=discrete,
            LEVELS=levels,
            CHANNELS=output.shape[1] // 2 if learned and layout == torch.channels_last else 0,
            BLOCK=BLOCK,
            num_warps=4,
            enable_fp_fusion=True,
        )
    # One launch for all of them.
    means = iter(parts.sum(dim=2))
    nothing = parts.new_empty(0)
    results = [next(means) if w else nothing for w in wanted]
    return results[0], results[1], results[2]
