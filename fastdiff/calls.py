"""A call of each op as a value: its arguments, once.

`fastdiff.ops` makes an op's schema from the fields and their types; references, fakes and launchers take it whole.
What the arguments mean, their shapes and ranges stand with the public functions there; here stands what an op gives.
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
    """Gives out [B, S, C], and lse [B, num_heads, S], the log-sum-exp of the scaled scores."""

    qkv: Tensor
    num_heads: int
    layout: QkvLayout
    scale: float


class AttentionBackwardCall(NamedTuple):
    """Of `attention`'s results and the gradient of the first, gives that of qkv."""

    grad: Tensor
    qkv: Tensor
    out: Tensor
    lse: Tensor
    num_heads: int
    layout: QkvLayout
    scale: float


class BoundTermsCall(NamedTuple):
    """Gives the bound's term and the squared error of the predicted x_0, each [B]."""

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
    """Gives the mean squared error, empty without a target, and the bound's term, each [B].

    With `detach_mean` the bound has no gradient through the predicted x_0.
    """

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
    """Of the gradients of `bound_loss`'s two results, [B] or None, gives that of the output."""

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
    """Gives y, and mean and squares [B, O], or empty ones where `want_statistics` is False."""

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
    """Gives y [B, O, H, W], channels_last."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None


class Conv3x3BackwardCall(NamedTuple):
    """Of y's gradient, gives those of x, empty where `want_input` is False, and of the weights."""

    grad: Tensor
    x: Tensor
    weight: Tensor
    want_input: bool


class LinearCall(NamedTuple):
    """Gives y [N, O]."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    residual: Tensor | None


class LinearBackwardCall(NamedTuple):
    """Of y's gradient, gives those of x, empty where `want_input` is False, and of the weights."""

    grad: Tensor
    x: Tensor
    weight: Tensor
    want_input: bool


class ColumnSumsCall(NamedTuple):
    """Gives the sums over the rows of x [N, C], [C]."""

    x: Tensor


class DiffuseCall(NamedTuple):
    """Gives x_t and the target, empty where `want_target` is False.

    `row` is int64 [1] or [B], `seed` the 64 bits of the public one as a signed number.
    """

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
    """Gives y, of x's shape. `sample_ids` None stands for 0..B-1."""

    x: Tensor
    seed: Tensor
    p: float
    sample_ids: Tensor | None


class GroupNormActCall(NamedTuple):
    """Gives y, the sum that was normalised or an empty one without a residual, and mean and rstd [B, groups]."""

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
    """Of the gradients of y and of the written sum, gives those of x, x2, weight, bias, scale, shift and the added.

    The last is [B, C], for `added_time` and, summed, `added_bias`. Where there was a residual, x is the sum that was
    written, and nothing is added to it. Gradients of what is None or not wanted are empty.
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
    """Gives the mean squared error, [B]."""

    output: Tensor
    target: Tensor


class MseBackwardCall(NamedTuple):
    """Of the gradient of `mse`, [B], gives that of the output."""

    grad: Tensor
    output: Tensor
    target: Tensor


class PosteriorMeanCall(NamedTuple):
    """Gives the mean, of x_t's shape."""

    x_t: Tensor
    model_output: Tensor
    t: Tensor
    table: Tensor
    clip: float | None


class StepCall(NamedTuple):
    """Writes x' to `out`, and where they are given the prediction to `pred_out`, and base and history in place.

    `row` is int64 [1] or [B], `seed` the 64 bits of the public one as a signed number.
    """

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
