"""A call of each op as a value: its arguments, written here and nowhere else.

`fastdiff.ops` makes the op's schema from the fields and their types, and its references, fakes and launchers take the
value whole. What the arguments mean, their shapes and ranges stand with the public functions there.
"""

from __future__ import annotations

from typing import Annotated, Literal, NamedTuple

import torch
from torch import Tensor

from fastdiff.tensors import QkvLayout

Decoder = Literal["discrete", "gaussian"]

# What a schema says and a type does not: a tensor that the op writes into, a number that a compiler may leave open.
MUTATED = "Tensor(!)"
Mutated = Annotated[Tensor, MUTATED]
SymInt = Annotated[int, "SymInt"]


class AttentionCall(NamedTuple):
    qkv: Tensor
    num_heads: int
    layout: QkvLayout
    scale: float


class AttentionBackwardCall(NamedTuple):
    """With `grad` of the result `out`, [B, S, C], and lse [B, num_heads, S], the log-sum-exp of the scaled scores."""

    grad: Tensor
    qkv: Tensor
    out: Tensor
    lse: Tensor
    num_heads: int
    layout: QkvLayout
    scale: float


class BoundTermsCall(NamedTuple):
    output: Tensor
    x0: Tensor
    x_t: Tensor
    t: Tensor
    table: Tensor
    clip: float | None
    learned_variance: bool
    decoder: Decoder
    levels: int


class BoundLossCall(NamedTuple):
    """`target` of the mean squared error, or None to leave it out; `detach_mean`: the bound trains no prediction."""

    output: Tensor
    target: Tensor | None
    x0: Tensor
    x_t: Tensor
    t: Tensor
    table: Tensor
    clip: float | None
    learned_variance: bool
    detach_mean: bool
    decoder: Decoder
    levels: int

    def terms(self) -> BoundTermsCall:
        """The bound's part of it."""
        return BoundTermsCall(
            self.output,
            self.x0,
            self.x_t,
            self.t,
            self.table,
            self.clip,
            self.learned_variance,
            self.decoder,
            self.levels,
        )


class BoundLossBackwardCall(NamedTuple):
    """With the gradients of both results, [B] or None."""

    output: Tensor
    grad_mse: Tensor | None
    grad_bound: Tensor | None
    target: Tensor | None
    x0: Tensor
    x_t: Tensor
    t: Tensor
    table: Tensor
    clip: float | None
    learned_variance: bool
    detach_mean: bool
    decoder: Decoder
    levels: int


class Conv2dFusedCall(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    gain: Tensor | None
    offset: Tensor | None
    time: Tensor | None
    residual: Tensor | None
    stride: int
    padding: int
    act: bool
    want_statistics: bool


class Conv3x3Call(NamedTuple):
    x: Tensor
    weight: Tensor
    bias: Tensor | None


class Conv3x3BackwardCall(NamedTuple):
    """With `grad` of the result. The gradient of the weights is always computed, that of x where it is wanted."""

    grad: Tensor
    x: Tensor
    weight: Tensor
    want_input: bool


class DiffuseCall(NamedTuple):
    """`row` is int64 [1] or [B], `seed` the 64 bits of the public one as a signed number."""

    x0: Tensor
    t: Tensor
    table: Tensor
    noise: Tensor | None
    sample_ids: Tensor
    row: Tensor
    seed: SymInt
    stream: int
    levels: int
    dtype: torch.dtype
    want_target: bool


class DropoutCall(NamedTuple):
    x: Tensor
    seed: Tensor
    p: float


class GroupNormActCall(NamedTuple):
    x: Tensor
    x2: Tensor | None
    residual: Tensor | None
    added_bias: Tensor | None
    added_time: Tensor | None
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    groups: int
    eps: float
    act: bool


class GroupNormActBackwardCall(NamedTuple):
    """With the gradients of y and of the written sum, and mean and rstd, [B, groups], as the forward pass gave them.

    Where there was a residual, x is the sum that was written, and nothing is added to it.
    """

    grad_y: Tensor
    grad_sum: Tensor | None
    x: Tensor
    x2: Tensor | None
    added_bias: Tensor | None
    added_time: Tensor | None
    weight: Tensor
    bias: Tensor
    scale: Tensor | None
    shift: Tensor | None
    mean: Tensor
    rstd: Tensor
    act: bool
    want_added: bool


class MseCall(NamedTuple):
    output: Tensor
    target: Tensor


class MseBackwardCall(NamedTuple):
    """With `grad` of the result, [B]."""

    grad: Tensor
    output: Tensor
    target: Tensor


class PosteriorMeanCall(NamedTuple):
    x_t: Tensor
    model_output: Tensor
    t: Tensor
    table: Tensor
    clip: float | None


class StepCall(NamedTuple):
    """`row` is int64 [1] or [B], `seed` the 64 bits of the public one as a signed number."""

    x: Tensor
    model_output: Tensor | None
    rows: Tensor
    row: Tensor
    noise: Tensor | None
    sample_ids: Tensor
    seed: SymInt
    learned_variance: bool
    base: Mutated | None
    history: Mutated | None
    pred_out: Mutated | None
    out: Mutated
