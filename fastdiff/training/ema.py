"""The exponential moving average of a network's weights, which is what one samples with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastdiff.nets.wrapped import plain_names, plain_network
from fastdiff.process.checks import whole_number

__all__ = ["Ema"]


class Ema:
    """Float32 shadow copies of a module's parameters: shadow <- d shadow + (1 - d) parameter.

    The average is a function of the steps taken alone: it holds no counter of its own. Buffers are not averaged.

    Args:
        module: Its parameters are followed; they may not be replaced or moved to another device afterwards.
            The names are those that they have without PyTorch's wrappers.
        decay: d, in [0, 1).
        warmup: If true, d at step s (from 0) is min(decay, (1 + s) / (10 + s)), so that the first weights are
            forgotten soon.

    Raises:
        ValueError: decay out of range.

    Source: Polyak and Juditsky (1992); decay 0.9999: Ho et al. (2020), arXiv:2006.11239, appendix B.
    """

    def __init__(self, module: nn.Module, decay: float, *, warmup: bool = True) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be in [0, 1), got {decay}")
        self.decay = decay
        self.warmup = warmup
        module = plain_network(module)
        self._names = [name for name, _ in module.named_parameters()]
        self._parameters = list(module.parameters())
        self._shadow = [parameter.detach().to(torch.float32, copy=True) for parameter in self._parameters]

    def decay_at(self, step: int) -> float:
        """d at a step, counted from 0."""
        return min(self.decay, (1 + step) / (10 + step)) if self.warmup else self.decay

    @torch.no_grad()
    def update(self, step: int, places: Sequence[int] | None = None) -> None:
        """Take in the parameters as they are after step number `step`, counted from 0.

        Args:
            step: As above.
            places: Which parameters, in the module's order; all when None.
        """
        step = whole_number("step", step, low=0)
        places = range(len(self._shadow)) if places is None else places
        if not places:
            return
        # A parameter that is float32 already is not copied.
        values = [self._parameters[place].detach().to(torch.float32) for place in places]
        torch._foreach_lerp_([self._shadow[place] for place in places], values, 1 - self.decay_at(step))

    @torch.no_grad()
    def copy_to(self, module: nn.Module) -> None:
        """Write the averages into a module with the same parameters.

        Raises:
            ValueError: the parameters' names or shapes differ.
        """
        targets = dict(plain_network(module).named_parameters())
        _check_fit({name: value.shape for name, value in targets.items()}, self.state_dict())
        for name, shadow in zip(self._names, self._shadow, strict=True):
            targets[name].copy_(shadow)

    @contextmanager
    def applied_to(self, module: nn.Module) -> Iterator[None]:
        """Within the block the module has the averages; after it, its own weights again, bit for bit.

        Raises:
            ValueError: as `copy_to`.
        """
        module = plain_network(module)
        own = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        self.copy_to(module)
        try:
            yield
        finally:
            with torch.no_grad():
                for name, parameter in module.named_parameters():
                    parameter.copy_(own[name])

    def state_dict(self) -> dict[str, Tensor]:
        """The averages by parameter name. The tensors are the live ones: copy them to keep them."""
        return dict(zip(self._names, self._shadow, strict=True))

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take over the averages of `state_dict`.

        Raises:
            ValueError: names or shapes differ from those of the module's parameters.
        """
        state = plain_names(state)
        _check_fit({name: shadow.shape for name, shadow in self.state_dict().items()}, state)
        for name, shadow in zip(self._names, self._shadow, strict=True):
            shadow.copy_(state[name])


def _check_fit(shapes: Mapping[str, torch.Size], state: Mapping[str, Tensor]) -> None:
    wrong = [name for name in shapes if name not in state or state[name].shape != shapes[name]]
    wrong += [name for name in state if name not in shapes]
    if wrong:
        raise ValueError(f"the averages belong to another network: {', '.join(wrong[:5])} missing, surplus or reshaped")
