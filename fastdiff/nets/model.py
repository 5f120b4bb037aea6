"""What is asked of a model, and what of its output: any callable (x, t) -> output, a module or not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.process.diffusion import Diffusion
from fastdiff.tensors import time_tensor


def network_times(diffusion: Diffusion, device: torch.device) -> Tensor:
    """[T] the times that the network is given: int64 where all of them are whole, else float32."""
    return time_tensor(diffusion.schedule.timesteps, device)


def split_output(output: Tensor, x: Tensor, learned_variance: bool) -> tuple[Tensor, Tensor | None]:
    """The model's prediction and, where the variance is learned, its values for that; both of x's shape.

    Raises:
        ValueError: the output has neither x's shape nor, with or without need, twice its channels.
    """
    channels = x.shape[1]
    expected = [x.shape[0], 2 * channels if learned_variance else channels, *x.shape[2:]]
    if list(output.shape) != expected:
        kind = "learned, which takes twice the channels" if learned_variance else "fixed"
        raise ValueError(
            f"the model's output must have shape {expected}, got {list(output.shape)}: the diffusion says that the "
            f"variance is {kind}"
        )
    return (output[:, :channels], output[:, channels:]) if learned_variance else (output, None)


Model = Callable[..., Tensor]


class InputKeeper:
    """Calls a model whose input is somebody's state, which must stay as it was.

    The first call is given a copy, which shows whether the model writes to its input; only one that does is given
    copies from then on.

    Attributes:
        model: What is called.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self._copies: bool | None = None

    def __call__(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The model's output.

        Raises:
            RuntimeError: the model wrote to its input at a later call, but not at the first.
        """
        # Inference tensors do not count what is written to them.
        if self._copies is not False or x.is_inference():
            copy = x.clone()
            before = None if copy.is_inference() else copy._version
            output = self.model(copy, t, **kwargs)
            self._copies = before is None or copy._version != before
            return output
        before = x._version
        output = self.model(x, t, **kwargs)
        if x._version != before:
            raise RuntimeError(
                "the model wrote to its input, which is the sampler's state, and had not done so at its first call: "
                "let it compute on a copy (x = x.clone())"
            )
        return output


@contextlib.contextmanager
def eval_mode(model: Any) -> Iterator[None]:
    """Run a module in eval mode (no dropout), and give each submodule its mode back."""
    training = [m for m in model.modules() if m.training] if isinstance(model, nn.Module) else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def model_device(model: Model, x: Tensor | None, device: torch.device | str | None) -> torch.device:
    """Where to run: the device asked for, else the model's own, else that of x, else the CPU."""
    if device is not None:
        return torch.device(device)
    if isinstance(model, nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is not None:
            return parameter.device
    # A network that was compiled for a GPU says which.
    own = getattr(model, "device", None)
    if isinstance(own, torch.device):
        return own
    return x.device if x is not None else torch.device("cpu")


def is_float32(model: nn.Module) -> bool:
    """Whether all floating parameters are float32."""
    return all(p.dtype == torch.float32 for p in model.parameters() if p.is_floating_point())


def model_dtype(model: Model, default: torch.dtype) -> torch.dtype:
    """The type that a model takes its input in: that of a module's parameters, else the default."""
    if isinstance(model, nn.Module):
        for parameter in model.parameters():
            if parameter.is_floating_point():
                return parameter.dtype
    return default
