"""A step's update of the weights: the gradient's norm, its clipping, AdamW's step and the averages.

On the CPU one pass over memory does all but the norm (csrc/cpu/update.cpp): with the many tensors of a small network,
calls would cost more than arithmetic. Elsewhere, and where tensors lie in other ways than their gradients, it is
PyTorch's.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.ops import has_extension
from fastdiff.ops._dispatch import LIBRARY
from fastdiff.training.averages import Averages
from fastdiff.training.optimizer import fresh_state

__all__ = ["Update", "gradient_norms"]

LIBRARY.define(
    "update(Tensor(a!)[] parameters, Tensor[] gradients, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
    "Tensor(d!)[] averages, float scale, float kept, float beta1, float beta2, float root, float eps, float step_size, "
    "float average_share) -> ()"
)
LIBRARY.define("gradient_norms_out(Tensor[] gradients, Tensor(a!) out) -> ()")


def gradient_norms(gradients: Sequence[Tensor]) -> Tensor:
    """The norm of each of some gradients, float32 [n]; on the CPU the same for any number of threads."""
    if not gradients:
        return torch.zeros(0)
    if not has_extension() or not all(g.is_cpu and g.dtype == torch.float32 for g in gradients):
        return torch.stack(torch._foreach_norm(list(gradients))).float()
    norms = torch.empty(len(gradients), device="cpu")
    torch.ops.fastdiff.gradient_norms_out.default(list(gradients), norms)
    return norms


class Update:
    """Updates a network's parameters and their averages.

    Args:
        parameters: Of the network, in the order of `averages`.
        optimizer: AdamW over them, which keeps the moments and the settings of each group.
        averages: Of the parameters.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], optimizer: torch.optim.AdamW, averages: Averages) -> None:
        self._parameters = list(parameters)
        self._optimizer = optimizer
        self._averages = averages
        places = {id(parameter): place for place, parameter in enumerate(self._parameters)}
        self._group_of = {places[id(p)]: n for n, group in enumerate(optimizer.param_groups) for p in group["params"]}
        # Steps that each parameter has taken, by its place: as numbers, and as the tensors of the optimizer's state,
        # which are views of one so that one addition counts for all.
        self._taken: dict[int, int] = {}
        self._steps = torch.zeros(len(self._parameters), device="cpu")
        # Places whose parameter and average lie alike.
        self._alike: set[int] = set()

    def norm(self) -> Tensor:
        """The norm of the whole gradient, a float32 scalar."""
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(gradient_norms(gradients))
        return norm

    @torch.no_grad()
    def step(self, step: int, norm: Tensor, max_norm: float, places: Sequence[int] | None = None) -> None:
        """Clip the gradients, take AdamW's step, and take the weights into the averages.

        Args:
            step: Its number, counted from 0.
            norm: Of the whole gradient.
            max_norm: The gradient is scaled to it where it is longer; inf for no limit.
            places: Of the parameters that are updated; all when None.
        """
        places = range(len(self._parameters)) if places is None else places
        moving = [place for place in places if self._parameters[place].grad is not None]
        shadows = list(self._averages.first.state_dict().values())
        if not has_extension() or not all(self._lies_alike(place, shadows[place]) for place in moving):
            self._taken.clear()
            torch.nn.utils.clip_grads_with_norm_([self._parameters[place] for place in moving], max_norm, norm)
            self._optimizer.step()
            self._averages.update(step, places)
            return
        # As PyTorch's clipping has it.
        scale = 1.0 if math.isinf(max_norm) else min(1.0, max_norm / (float(norm) + 1e-6))
        for group, taken, alike in self._groups(moving):
            self._one_pass(group, taken, alike, shadows, scale, 1 - self._averages.first.decay_at(step))
        self._averages.first.update(step, sorted(set(places) - set(moving)))
        self._averages.update(step, places, first=False)

    def _one_pass(
        self,
        group: dict[str, Any],
        taken: int,
        places: Sequence[int],
        shadows: Sequence[Tensor],
        scale: float,
        average_share: float,
    ) -> None:
        parameters = [self._parameters[place] for place in places]
        states = [self._optimizer.state[parameter] for parameter in parameters]
        rate, (beta1, beta2) = float(group["lr"]), group["betas"]
        torch.ops.fastdiff.update.default(
            parameters,
            [parameter.grad for parameter in parameters],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [shadows[place] for place in places],
            scale,
            1 - rate * group["weight_decay"],
            beta1,
            beta2,
            math.sqrt(1 - beta2 ** (taken + 1)),
            group["eps"],
            rate / (1 - beta1 ** (taken + 1)),
            average_share,
        )
        self._steps[places] += 1
        self._taken |= dict.fromkeys(places, taken + 1)

    def _groups(self, moving: Sequence[int]) -> Iterator[tuple[dict[str, Any], int, list[int]]]:
        """Groups of the optimizer, and places of their parameters that have taken so many steps."""
        states = self._optimizer.state
        found: dict[tuple[int, int], list[int]] = {}
        for place in moving:
            if place not in self._taken:
                parameter = self._parameters[place]
                states[parameter] = states.get(parameter) or fresh_state(parameter)
                self._taken[place] = int(states[parameter]["step"])
                states[parameter]["step"] = self._steps[place].copy_(states[parameter]["step"])
            found.setdefault((self._group_of[place], self._taken[place]), []).append(place)
        for (number, taken), places in found.items():
            yield self._optimizer.param_groups[number], taken, places

    def _lies_alike(self, place: int, shadow: Tensor) -> bool:
        """Whether a parameter, its gradient and its average lie in one stretch of memory each, in one order."""
        parameter = self._parameters[place]
        if place not in self._alike:
            if not (_is_plain(parameter) and _follows(shadow, parameter)):
                return False
            self._alike.add(place)
        return parameter.grad is not None and _follows(parameter.grad, parameter)


def _is_plain(tensor: Tensor) -> bool:
    """Whether it is float32 on the CPU, in one stretch of memory."""
    return (
        tensor.is_cpu
        and tensor.dtype == torch.float32
        and (tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)))
    )


def _follows(tensor: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape have their values in one order; a dimension of size 1 has any stride."""
    if tensor.stride() == other.stride():
        return True
    sides = zip(tensor.shape, tensor.stride(), other.stride(), strict=True)
    return all(size == 1 or ours == theirs for size, ours, theirs in sides)
