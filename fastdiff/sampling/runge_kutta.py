"""An adaptive Runge-Kutta integrator whose samples have their own times and steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastdiff.tensors import per_sample

# Dormand and Prince (1980), the pair of orders 5 and 4; the last stage is the first of the next step.
_A = (
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
_C = (1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
# Difference of the two orders' weights.
_E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# A step is changed by a factor in this range, and aims a little below the tolerance.
_SHRINK, _GROW, _SAFETY = 0.2, 5.0, 0.9
# The first step, as a share of the way.
_FIRST = 0.02

Slope = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
"""(time [b], state [b, ...], numbers [b] of the samples) to the slopes of the state and of the integrals [b, K]."""


@dataclass(frozen=True, eq=False)
class Solution:
    """Where the samples have arrived.

    Attributes:
        state: [B, ...].
        integrals: [B, K], integrals along the way.
        integral_error: [B], the sum of the sizes of their local errors, mean over K.
        steps: [B] int64, accepted steps.
        evaluations: [B] int64, evaluations of the slope.
    """

    state: Tensor
    integrals: Tensor
    integral_error: Tensor
    steps: Tensor
    evaluations: Tensor


def integrate(
    slope: Slope, state: Tensor, integrals: Tensor, start: float, end: float, tolerance: float, max_steps: int
) -> Solution:
    """Integrate each sample from `start` to `end`; a sample's result does not depend on the others.

    Args:
        slope: The equation.
        state: [B, ...] float64 at the start.
        integrals: [B, K] float64, which the slope does not read.
        start: Time of the start.
        end: Time of the end, on either side.
        tolerance: A step's error, root mean square over a sample's dimensions, divided by 1 + |state|, is kept below
            this; so is that of each integral per dimension of the state.
        max_steps: Tried steps per sample.

    Raises:
        RuntimeError: a sample needs more steps, or its slope is not finite.
    """
    batch, dims = state.shape[0], max(1, state[0].numel())
    device, length = state.device, end - start
    y, a = state.clone(), integrals.clone()
    error_sum = torch.zeros(batch, dtype=torch.float64, device=device)
    steps, evaluations = (torch.zeros(batch, dtype=torch.int64, device=device) for _ in range(2))
    active = torch.arange(batch, device=device)
    # Time as a share of the way, so that the end is met exactly.
    at = torch.zeros(batch, dtype=torch.float64, device=device)
    size = torch.full_like(at, _FIRST)
    first = slope(start + length * at, y, active)
    evaluations += 1
    tried = 0
    while len(active):
        if tried == max_steps:
            raise RuntimeError(
                f"{len(active)} of {batch} samples need more than {max_steps} steps: take a larger tolerance"
            )
        tried += 1
        now, height = at[active], torch.minimum(size[active], 1 - at[active])
        ys, stages = y[active], [(first[0], first[1])]
        for row, share in zip(_A, _C, strict=True):
            moved = ys + per_sample(height * length, ys) * _combined(row, [dy for dy, _ in stages])
            stages.append(slope(start + length * (now + share * height), moved, active))
        evaluations[active] += len(_A)
        step = height * length
        error_y = per_sample(step, ys) * _combined(_E, [dy for dy, _ in stages])
        error_a = step[:, None] * _combined(_E, [da for _, da in stages])
        scale = 1 + torch.maximum(ys.abs(), moved.abs())
        relative = (error_y / scale).square().flatten(1).mean(dim=1).sqrt() / tolerance
        gained = step[:, None] * _combined(_A[-1], [da for _, da in stages])
        relative_a = error_a.abs() / (dims + torch.maximum(a[active].abs(), (a[active] + gained).abs())) / tolerance
        ratio = torch.maximum(relative, relative_a.amax(dim=1))
        if not bool(torch.isfinite(ratio).all()):
            raise RuntimeError(
                f"the network's output or its derivative is not finite near time {float(start + length * now[0]):.4g}"
            )
        accepted = ratio <= 1
        factor = (_SAFETY * ratio.clamp(min=1e-10) ** -0.2).clamp(_SHRINK, _GROW)
        # A step cut short by the end says nothing against the size before it.
        size[active] = height * factor
        done = active[accepted]
        y[done], a[done] = moved[accepted], (a[active] + gained)[accepted]
        error_sum[done] += error_a[accepted].abs().mean(dim=1)
        steps[done] += 1
        at[done] = torch.where(height[accepted] >= 1 - now[accepted], 1.0, now[accepted] + height[accepted])
        last = stages[-1]
        first = tuple(  # type: ignore[assignment]
            torch.where(per_sample(accepted, old), new, old) for new, old in zip(last, first, strict=True)
        )
        going = at[active] < 1
        active, first = active[going], (first[0][going], first[1][going])
    return Solution(y, a, error_sum, steps, evaluations)


def _combined(weights: tuple[float, ...], slopes: list[Tensor]) -> Tensor:
    total = weights[0] * slopes[0]
    for weight, slope in zip(weights[1:], slopes[1:], strict=False):
        if weight:
            total = total + weight * slope
    return total
