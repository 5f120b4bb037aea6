"""The ops `mse`, `bound_loss` and `bound_terms`: losses of each sample in one pass, the first two with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.calls import (
    BoundLossBackwardCall,
    BoundLossCall,
    BoundTermsCall,
    Decoder,
    MseBackwardCall,
    MseCall,
)
from fastdiff.ops._arguments import check_index, check_precision, check_table, check_times, describe
from fastdiff.ops._dispatch import (
    Implementation,
    define,
    differentiate,
    dispatch,
    gradients,
    refuse_second_derivative,
    wanted_gradients,
)
from fastdiff.ops.reference import losses as reference
from fastdiff.process.checks import whole_number
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format


def mse(output: Tensor, target: Tensor, *, implementation: Implementation = "auto") -> Tensor:
    """Squared error of each sample, averaged over its elements: one term of L_simple, for any prediction.

    Args:
        output: The network's, [B, ...] float32, bfloat16, float16 or float64.
        target: eps, x_0 or v, output's shape and any of these types, but float64 with float64 and only then.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        [B] float32, or float64 for float64. All arithmetic is in that type. Both arguments have gradients.

    Raises:
        ValueError: shapes, dtypes or devices that do not fit.
        RuntimeError: the named implementation is not available.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 14.
    """
    _check_output(output)
    _check_like("target", target, output, output.shape)
    loss: Tensor = dispatch(MseCall(output, target), implementation)
    return loss


def hybrid_loss(
    output: Tensor,
    target: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    decoder: Decoder = "discrete",
    levels: int = 256,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Both parts of the loss for learned variances in one pass: the terms of L_simple and of the bound.

    As in `reference.bound.hybrid`, the bound sees the first half of the output detached, and its x_0 is not clipped.

    Args:
        output: The network's, [B, 2C, ...]: the prediction, then the variance.
        target: What the first half should be, [B, C, ...].
        x0: Images [B, C, ...] in [-1, 1].
        x_t: Noisy images [B, C, ...].
        t: int64 [B], in [0, T). On a GPU a t out of range gives NaN; everywhere else it raises.
        table: [T, 6] from `BoundTable.rows`, float32, or float64 for float64 output.
        decoder: "discrete": the probability of the bin of x_0; "gaussian": the density at x_0.
        levels: Number of values of the data, at least 2, for the discrete decoder.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        (mse [B], bound [B] in bits per dimension), float32, or float64 for float64. The output has a gradient.

    Raises:
        ValueError: shapes, dtypes, devices or values that do not fit, or another argument that requires grad.
        IndexError: t outside [0, T), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: Nichol and Dhariwal (2021), arXiv:2102.09672, eq. 16 and section 3.1.
    """
    call = BoundLossCall(output, target, x0, x_t, t, table, None, True, True, decoder, levels)
    return _run_bound(call, implementation)


def bound_loss(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    learned_variance: bool = False,
    clip: float | None = None,
    decoder: Decoder = "discrete",
    levels: int = 256,
    implementation: Implementation = "auto",
) -> Tensor:
    """One term of the variational bound of each sample in one pass: L_t, or the decoder's where t = 0.

    Args:
        output: The network's, [B, C, ...], or [B, 2C, ...] with a learned variance.
        learned_variance: Whether the second half of the output says the variance.
        clip: Bound on the predicted x_0, above 0; None for none.
        x0, x_t, t, table, decoder, levels, implementation: As in `hybrid_loss`.

    Returns:
        [B] in bits per dimension, float32, or float64 for float64. The output has a gradient, in both halves.

    Raises:
        ValueError: shapes, dtypes, devices or values that do not fit, or another argument that requires grad.
        IndexError: t outside [0, T), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 5, 8 and 13.
    """
    call = BoundLossCall(output, None, x0, x_t, t, table, clip, learned_variance, False, decoder, levels)
    return _run_bound(call, implementation)[1]


def bound_terms(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    learned_variance: bool = False,
    clip: float | None = None,
    decoder: Decoder = "discrete",
    levels: int = 256,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """`bound_loss` for scoring: the same term, and the squared error of the predicted x_0 from the same pass.

    Args:
        output, x0, x_t, t, table, learned_variance, clip, decoder, levels, implementation: As in `bound_loss`.

    Returns:
        (bound [B] in bits per dimension, x0_mse [B]), float32, or float64 for float64. x0_mse is the mean over elements
        of the squared difference of x_0 and the predicted one, clipped where clip says so. Neither has a gradient.

    Raises:
        ValueError: shapes, dtypes, devices or values that do not fit, or an argument that requires grad.
        IndexError: t outside [0, T), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: as `bound_loss`.
    """
    if torch.is_grad_enabled() and output.requires_grad:
        raise ValueError("bound_terms has no gradient: detach output, call it under torch.no_grad(), or use bound_loss")
    call = BoundTermsCall(output, x0, x_t, t, table, clip, learned_variance, decoder, levels)
    _check_bound(call, None)
    bound, x0_mse = dispatch(call, implementation)
    return bound, x0_mse


def _run_bound(call: BoundLossCall, implementation: Implementation) -> tuple[Tensor, Tensor]:
    _check_bound(call.terms(), call.target)
    simple, bound = dispatch(call, implementation)
    return simple, bound


def _check_bound(call: BoundTermsCall, target: Tensor | None) -> None:
    output, x0, x_t, t, table, clip, learned_variance, decoder, levels = call
    _check_output(output)
    channels = output.shape[1] if output.ndim > 1 else 0
    if learned_variance and (channels == 0 or channels % 2):
        raise ValueError(f"output must be [B, 2C, ...] with a learned variance, got {describe(output)}")
    size = (output.shape[0], channels // 2, *output.shape[2:]) if learned_variance else tuple(output.shape)
    for name, value in (("x0", x0), ("x_t", x_t), ("target", target)):
        if value is not None:
            _check_like(name, value, output, size)
            if torch.is_grad_enabled() and value.requires_grad:
                raise ValueError(f"{name} has no gradient here: detach it, or use fastdiff.ops.reference.bound")
    check_times(t, output)
    check_table("table", table, output, "T", 6, "BoundTable.rows")
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be finite and above 0, or None, got {clip}")
    if decoder not in ("discrete", "gaussian"):
        raise ValueError(f"decoder must be 'discrete' or 'gaussian', got {decoder!r}")
    whole_number("levels", levels, low=2)


def _check_output(output: Tensor) -> None:
    if output.dtype not in FLOAT_DTYPES or output.ndim < 1:
        raise ValueError(f"output must be [B, ...] float32, bfloat16, float16 or float64, got {describe(output)}")


def _check_like(name: str, value: Tensor, output: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.device != output.device:
        raise ValueError(f"{name} must be {list(shape)} on {output.device}, got {describe(value)}")
    check_precision(name, value.dtype, "output", output.dtype)


def _check_indices(call: BoundTermsCall | BoundLossCall) -> None:
    check_index("t", call.t, call.table.shape[0])


def _one_per_sample(output: Tensor) -> Tensor:
    return output.new_empty(output.shape[:1], dtype=compute_dtype(output))


def _like_output(gradient: Tensor, output: Tensor) -> Tensor:
    return gradient.to(output.dtype).contiguous(memory_format=memory_format(output))


def _mse_fake(call: MseCall) -> Tensor:
    return _one_per_sample(call.output)


def _mse_backward_reference(call: MseBackwardCall) -> Tensor:
    return _like_output(reference.mse_backward(call), call.output)


def _mse_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    call = MseBackwardCall(grad, *ctx.saved_tensors)
    found, wanted = dispatch(call), wanted_gradients(MseCall, ctx)
    return gradients(
        MseCall,
        output=found if "output" in wanted else None,
        target=-found.to(call.target.dtype) if "target" in wanted else None,
    )


def _terms_reference(call: BoundTermsCall) -> tuple[Tensor, Tensor]:
    _check_indices(call)
    return reference.bound_terms(call)


def _terms_fake(call: BoundTermsCall) -> tuple[Tensor, Tensor]:
    return _one_per_sample(call.output), _one_per_sample(call.output)


def _bound_reference(call: BoundLossCall) -> tuple[Tensor, Tensor]:
    _check_indices(call)
    simple, bound = reference.bound_loss(call)
    return bound.new_empty(0) if simple is None else simple, bound


def _bound_fake(call: BoundLossCall) -> tuple[Tensor, Tensor]:
    bound = _one_per_sample(call.output)
    return bound.new_empty(0) if call.target is None else torch.empty_like(bound), bound


def _bound_backward_reference(call: BoundLossBackwardCall) -> Tensor:
    return _like_output(reference.bound_loss_backward(call), call.output)


def _gradient_fake(call: MseBackwardCall | BoundLossBackwardCall) -> Tensor:
    return torch.empty_like(call.output, memory_format=memory_format(call.output))


def _bound_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    output, target, x0, x_t, t, table, *ctx.options = BoundLossCall(*inputs)
    ctx.save_for_backward(output, target, x0, x_t, t, table)
    ctx.set_materialize_grads(False)


def _bound_backward(ctx: Any, grad_mse: Tensor | None, grad_bound: Tensor | None) -> tuple[Tensor | None, ...]:
    output, target, *images = ctx.saved_tensors
    if target is None:
        grad_mse = None
    if grad_mse is None and grad_bound is None:
        return gradients(BoundLossCall)
    call = BoundLossBackwardCall(output, grad_mse, grad_bound, target, *images, *ctx.options)
    return gradients(BoundLossCall, output=dispatch(call))


define("mse", MseCall, reference.mse, _mse_fake, kernel="losses")
define("mse_backward", MseBackwardCall, _mse_backward_reference, _gradient_fake, kernel="losses_backward")
define("bound_terms", BoundTermsCall, _terms_reference, _terms_fake, check_indices=_check_indices, kernel="losses")
define("bound_loss", BoundLossCall, _bound_reference, _bound_fake, check_indices=_check_indices, kernel="losses")
define(
    "bound_loss_backward",
    BoundLossBackwardCall,
    _bound_backward_reference,
    _gradient_fake,
    kernel="losses_backward",
)
differentiate(MseCall, _mse_backward, _mse_setup)
differentiate(BoundLossCall, _bound_backward, _bound_setup)
refuse_second_derivative("mse_backward", "the fused losses have")
refuse_second_derivative("bound_loss_backward", "the fused losses have")
