"""The ops `mse`, `bound_loss` and `bound_terms`: losses of each sample in one pass, the first two with gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from fastdiff.ops._arguments import check_index, describe
from fastdiff.ops._dispatch import Implementation, define, dispatch
from fastdiff.ops.reference import losses as reference_losses
from fastdiff.ops.reference.bound import Decoder
from fastdiff.tensors import FLOAT_DTYPES, compute_dtype, memory_format

_BOUND = (
    "Tensor x0, Tensor x_t, Tensor t, Tensor table, float? clip, bool learned_variance, bool detach_mean, "
    "str decoder, int levels"
)


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
    loss: Tensor = dispatch("mse", output, implementation, (output, target))
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
    arguments = (output, target, x0, x_t, t, table, None, True, True, decoder, levels)
    simple, bound = _run_bound(arguments, implementation)
    return simple, bound


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
    arguments = (output, None, x0, x_t, t, table, clip, learned_variance, False, decoder, levels)
    return _run_bound(arguments, implementation)[1]


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
    _check_bound(output, None, x0, x_t, t, table, clip, learned_variance, decoder, levels)
    arguments = (output, x0, x_t, t, table, clip, learned_variance, decoder, levels)
    bound, x0_mse = dispatch("bound_terms", output, implementation, arguments)
    return bound, x0_mse


def _run_bound(arguments: tuple[Any, ...], implementation: Implementation) -> tuple[Tensor, Tensor]:
    output, target, x0, x_t, t, table, clip, learned_variance, _, decoder, levels = arguments
    _check_bound(output, target, x0, x_t, t, table, clip, learned_variance, decoder, levels)
    simple, bound = dispatch("bound_loss", output, implementation, arguments)
    return simple, bound


def _check_bound(
    output: Tensor,
    target: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    clip: float | None,
    learned_variance: bool,
    decoder: Decoder,
    levels: int,
) -> None:
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
    if t.shape != output.shape[:1] or t.dtype != torch.int64 or t.device != output.device:
        raise ValueError(f"t must be int64 [{output.shape[0]}] on {output.device}, got {describe(t)}")
    fits = table.ndim == 2 and table.shape[1] == 6 and table.device == output.device
    if not fits or table.dtype != compute_dtype(output):
        raise ValueError(
            f"table must be {compute_dtype(output)} [T, 6] on {output.device} (from BoundTable.rows), "
            f"got {describe(table)}"
        )
    if clip is not None and not 0 < clip < math.inf:
        raise ValueError(f"clip must be finite and above 0, or None, got {clip}")
    if decoder not in ("discrete", "gaussian"):
        raise ValueError(f"decoder must be 'discrete' or 'gaussian', got {decoder!r}")
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")


def _check_output(output: Tensor) -> None:
    if output.dtype not in FLOAT_DTYPES or output.ndim < 1:
        raise ValueError(f"output must be [B, ...] float32, bfloat16, float16 or float64, got {describe(output)}")


def _check_like(name: str, value: Tensor, output: Tensor, shape: tuple[int, ...]) -> None:
    if value.shape != shape or value.device != output.device:
        raise ValueError(f"{name} must be {list(shape)} on {output.device}, got {describe(value)}")
    if value.dtype not in FLOAT_DTYPES or (value.dtype == torch.float64) != (output.dtype == torch.float64):
        raise ValueError(
            f"{name} of {value.dtype} does not fit output of {output.dtype}: float64 goes with float64 only"
        )


def _mse_reference(output: Tensor, target: Tensor) -> Tensor:
    return reference_losses.mse(output, target)


def _mse_fake(output: Tensor, target: Tensor) -> Tensor:
    return output.new_empty(output.shape[:1], dtype=compute_dtype(output))


def _mse_backward_reference(grad: Tensor, output: Tensor, target: Tensor) -> Tensor:
    found = reference_losses.mse_backward(grad, output, target).to(output.dtype)
    return found.contiguous(memory_format=memory_format(output))


def _mse_backward_fake(grad: Tensor, output: Tensor, target: Tensor) -> Tensor:
    return torch.empty_like(output, memory_format=memory_format(output))


def _mse_setup(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _mse_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    output, target = ctx.saved_tensors
    found = torch.ops.fastdiff.mse_backward(grad, output, target)
    return found if ctx.needs_input_grad[0] else None, -found.to(target.dtype) if ctx.needs_input_grad[1] else None


def _bound_reference(
    output: Tensor,
    target: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    clip: float | None,
    learned_variance: bool,
    detach_mean: bool,
    decoder: Decoder,
    levels: int,
) -> tuple[Tensor, Tensor]:
    check_index("t", t, table.shape[0])
    simple, bound = reference_losses.bound_loss(
        output, target, x0, x_t, t, table, clip, learned_variance, decoder, levels
    )
    return bound.new_empty(0) if simple is None else simple, bound


def _terms_reference(
    output: Tensor,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    clip: float | None,
    learned_variance: bool,
    decoder: Decoder,
    levels: int,
) -> tuple[Tensor, Tensor]:
    check_index("t", t, table.shape[0])
    return reference_losses.bound_terms(output, x0, x_t, t, table, clip, learned_variance, decoder, levels)


def _terms_fake(output: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bound = output.new_empty(output.shape[:1], dtype=compute_dtype(output))
    return bound, torch.empty_like(bound)


def _bound_fake(output: Tensor, target: Tensor | None, x0: Tensor, *rest: Any) -> tuple[Tensor, Tensor]:
    bound = output.new_empty(output.shape[:1], dtype=compute_dtype(output))
    return bound.new_empty(0) if target is None else torch.empty_like(bound), bound


def _bound_backward_reference(
    output: Tensor,
    grad_mse: Tensor | None,
    grad_bound: Tensor | None,
    target: Tensor | None,
    x0: Tensor,
    x_t: Tensor,
    t: Tensor,
    table: Tensor,
    clip: float | None,
    learned_variance: bool,
    detach_mean: bool,
    decoder: Decoder,
    levels: int,
) -> Tensor:
    arguments = (output, target, x0, x_t, t, table, clip, learned_variance, detach_mean, decoder, levels)
    found = reference_losses.bound_loss_backward(grad_mse, grad_bound, *arguments)
    return found.to(output.dtype).contiguous(memory_format=memory_format(output))


def _bound_backward_fake(output: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(output, memory_format=memory_format(output))


def _bound_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:6])
    ctx.options = inputs[6:]
    ctx.set_materialize_grads(False)


def _bound_backward(ctx: Any, grad_mse: Tensor | None, grad_bound: Tensor | None) -> tuple[Tensor | None, ...]:
    output, *saved = ctx.saved_tensors
    if saved[0] is None:
        grad_mse = None
    if grad_mse is None and grad_bound is None:
        return (None,) * 11
    found = torch.ops.fastdiff.bound_loss_backward(output, grad_mse, grad_bound, *saved, *ctx.options)
    return found, *[None] * 10


def _no_second_derivative(ctx: Any, *grads: Any) -> Any:
    raise RuntimeError("the fused losses have no second derivative: take the first without create_graph")


define("mse", "(Tensor output, Tensor target) -> Tensor", _mse_reference, _mse_fake, kernel="losses")
define(
    "mse_backward",
    "(Tensor grad, Tensor output, Tensor target) -> Tensor",
    _mse_backward_reference,
    _mse_backward_fake,
    kernel="losses_backward",
)
define(
    "bound_loss",
    f"(Tensor output, Tensor? target, {_BOUND}) -> (Tensor, Tensor)",
    _bound_reference,
    _bound_fake,
    lambda arguments: check_index("t", arguments[4], arguments[5].shape[0]),
    kernel="losses",
)
define(
    "bound_terms",
    "(Tensor output, Tensor x0, Tensor x_t, Tensor t, Tensor table, float? clip, bool learned_variance, str decoder, "
    "int levels) -> (Tensor, Tensor)",
    _terms_reference,
    _terms_fake,
    lambda arguments: check_index("t", arguments[3], arguments[4].shape[0]),
    kernel="losses",
)
define(
    "bound_loss_backward",
    f"(Tensor output, Tensor? grad_mse, Tensor? grad_bound, Tensor? target, {_BOUND}) -> Tensor",
    _bound_backward_reference,
    _bound_backward_fake,
    kernel="losses_backward",
)
torch.library.register_autograd("fastdiff::mse", _mse_backward, setup_context=_mse_setup)
torch.library.register_autograd("fastdiff::bound_loss", _bound_backward, setup_context=_bound_setup)
for _name in ("mse_backward", "bound_loss_backward"):
    torch.library.register_autograd(f"fastdiff::{_name}", _no_second_derivative)
