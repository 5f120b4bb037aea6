"""Guidance as model wrappers: classifier-free, by a classifier, and by a weaker model.

A wrapper is a module with the interface of a model, (x, t, **kwargs) -> output, so that any sampler runs it. Where the
output has 2C channels, the first half is guided and the second, the variance's, is the conditional model's own.

A self-conditioned model is given the last guided prediction, in each of its evaluations: a wrapper of one says so by
`self_condition`, as the model itself does.

On the CPU, `fastdiff.compile(unet)` in the place of a `UNet` makes a guided model as fast as the engine.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff.nets.model import InputKeeper
from fastdiff.process.arguments import advised, spelt
from fastdiff.process.checks import shown
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.sampling.labels import Classes
from fastdiff.sampling.self_conditioning import ARGUMENT, is_self_conditioned
from fastdiff.tensors import per_sample

Model = Callable[..., Tensor]


class Guided(nn.Module):
    """A guided model: it keeps modules among its children, and plain callables as they are.

    Attributes:
        model: What is guided.
        model_names: Attributes that are models.
        scale: The weight of the guidance; a tensor on the model's device is one that a recorded graph reads.
    """

    model: Model
    scale: float | Tensor

    def __init__(self, **models: Model) -> None:
        super().__init__()
        for name, model in models.items():
            setattr(self, name, model)
        self.model_names = tuple(models)
        self._keepers: dict[str, InputKeeper] = {}

    @property
    def self_condition(self) -> bool:
        """Whether a model in it is given its last prediction."""
        return any(is_self_conditioned(getattr(self, name), {}) for name in self.model_names)

    def _evaluate(self, name: str, x: Tensor, t: Tensor, kwargs: dict[str, Any]) -> Tensor:
        """A model's output for an x that is still read afterwards."""
        model = getattr(self, name)
        keeper = self._keepers.get(name)
        if keeper is None or keeper.model is not model:
            keeper = self._keepers[name] = InputKeeper(model)
        return keeper(x, t, **self._arguments(name, kwargs))

    def _arguments(self, name: str, kwargs: dict[str, Any]) -> dict[str, Any]:
        """Keyword arguments without a prediction for which a model has no use, where another one has it."""
        if ARGUMENT in kwargs and self.self_condition and not is_self_conditioned(getattr(self, name), {}):
            return {key: value for key, value in kwargs.items() if key != ARGUMENT}
        return kwargs


class ClassifierFreeGuidance(Guided):
    """Extrapolates from the unconditional to the conditional output: u + scale (c - u).

    Both are evaluated in one batch of 2B.

    Args:
        model: Takes x, t and the keyword arguments.
        unconditional: Keyword arguments of the unconditional output, for example {"y": null_label}: a tensor of B or 1
            entries, or a number, for each one that differs. The others are given to both.
        scale: 0 is unconditional, 1 conditional, above 1 guided.
        interval: Times [low, high] of the network within which to guide; outside, the output is conditional.
        rescale: In [0, 1]: share of the correction that gives the guided prediction the conditional one's standard
            deviation per sample.

    Raises:
        ValueError: options out of range; a keyword of `unconditional` that is not given at the call.

    Source: Ho and Salimans (2022), arXiv:2207.12598, eq. 6; interval: Kynkaanniemi et al. (2024), arXiv:2404.07724;
    rescale: Lin et al. (2023), arXiv:2305.08891, eq. 15 and 16.
    """

    def __init__(
        self,
        model: Model,
        unconditional: Mapping[str, Tensor | int | float],
        scale: float,
        *,
        interval: tuple[float, float] | None = None,
        rescale: float = 0.0,
    ) -> None:
        super().__init__(model=model)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must be in [0, 1], got {rescale!r}")
        self.unconditional = dict(unconditional)
        if not self.unconditional:
            raise ValueError("unconditional must name the keyword arguments that differ, for example {'y': null_label}")
        self.scale, self.interval, self.rescale = scale, _checked_interval(interval), rescale

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The guided output [B, C or 2C, ...] for x [B, C, ...] and t [B]."""
        if missing := set(self.unconditional) - set(kwargs):
            raise ValueError(f"the model was called without {sorted(missing)}, which `unconditional` replaces")
        both: dict[str, Any] = {}
        for key, value in kwargs.items():
            if key in self.unconditional:
                null = torch.as_tensor(self.unconditional[key], dtype=value.dtype, device=value.device)
                both[key] = torch.cat([value, null.expand_as(value)])
            else:
                both[key] = _doubled(value, x.shape[0])
        conditional, unconditional = self.model(torch.cat([x, x]), torch.cat([t, t]), **both).chunk(2)
        return guided_output(x, t, conditional, unconditional, self.scale, self.interval, self.rescale)


class AutoGuidance(Guided):
    """Extrapolates from a weaker model's output to the model's: w + scale (m - w).

    Args:
        model: Takes x, t and the keyword arguments.
        weak: A smaller or less trained version of it, with the same arguments and meaning.
        scale: 1 is the model itself, above 1 guided.
        interval: As in `ClassifierFreeGuidance`.

    Source: Karras et al. (2024), arXiv:2406.02507, eq. 3.
    """

    weak: Model

    def __init__(self, model: Model, weak: Model, scale: float, *, interval: tuple[float, float] | None = None) -> None:
        super().__init__(model=model, weak=weak)
        self.scale, self.interval = scale, _checked_interval(interval)

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The guided output [B, C or 2C, ...] for x [B, C, ...] and t [B]."""
        strong, weak = self._evaluate("model", x, t, kwargs), self.weak(x, t, **self._arguments("weak", kwargs))
        return guided_output(x, t, strong, weak, self.scale, self.interval, 0.0)


class ClassifierGuidance(Guided):
    """Adds scale times the gradient of log p(y | x_t) to the score, whatever the model predicts.

    Args:
        model: Takes x, t and the keyword arguments.
        cond_fn: (x, t, **kwargs) -> gradient of log p(y | x_t) with respect to x, of x's shape.
        diffusion: What the model was trained on.
        scale: Of the gradient.

    Source: Dhariwal and Nichol (2021), arXiv:2105.05233, algorithm 2 and eq. 14: the score form, for every sampler.
    """

    times: Tensor
    shift: Tensor

    def __init__(self, model: Model, cond_fn: Callable[..., Tensor], diffusion: Diffusion, scale: float = 1.0) -> None:
        super().__init__(model=model)
        self.cond_fn, self.scale, self.prediction = cond_fn, scale, diffusion.prediction
        alpha, sigma = diffusion.signal_noise()
        if self.prediction in ("x0", "v", "velocity", "F") and bool((alpha == 0).any()):
            raise ValueError(
                "guidance of this prediction needs some signal at every timestep; the schedule leaves none"
            )
        # d eps = -sigma g, so d x0 = sigma^2 / alpha g, and d v = alpha d eps - sigma d x0 = -sigma / alpha g.
        shifts: dict[str, Callable[[], Array]] = {
            "eps": lambda: -sigma,
            "x0": lambda: sigma**2 / alpha,
            "v": lambda: -sigma / alpha,
            "score": lambda: np.ones_like(sigma),
            "velocity": lambda: -sigma / diffusion.eps_coefficients()[1],
            "F": lambda: -sigma / diffusion.eps_coefficients()[1],
        }
        # g is taken in what the network is given, n x, so that of x is n times it; a score is of the former.
        shift = shifts[self.prediction]()
        if self.prediction != "score":
            shift = shift * diffusion.input_scale()
        times = diffusion.schedule.timesteps
        # Rising, also where the network's own fall.
        self._sign = -1.0 if times[-1] < times[0] else 1.0
        self.register_buffer("times", torch.tensor(self._sign * times), persistent=False)
        self.register_buffer("shift", torch.tensor(shift, dtype=torch.float32), persistent=False)

    def forward(self, x: Tensor, t: Tensor, **kwargs: Any) -> Tensor:
        """The guided output [B, C or 2C, ...] for x [B, C, ...] and t [B]."""
        output = self._evaluate("model", x, t, kwargs)
        # The prediction is the model's, and no argument of a classifier.
        given = {key: value for key, value in kwargs.items() if key != ARGUMENT or not self.self_condition}
        gradient = self.cond_fn(x, t, **given)
        if gradient.shape != x.shape:
            raise ValueError(f"cond_fn must give a gradient of shape {list(x.shape)}, got {list(gradient.shape)}")
        # The nearest timestep, for samplers that visit levels between them.
        times, shift = self.times.to(x.device), self.shift.to(x.device)
        t = t if self._sign > 0 else -t
        place = torch.searchsorted(times, t.to(times.dtype).contiguous()).clamp(max=times.shape[0] - 1)
        before = (place - 1).clamp(min=0)
        place = torch.where((t - times[before]).abs() <= (times[place] - t).abs(), before, place)
        prediction = output[:, : x.shape[1]]
        guided = prediction + per_sample(self.scale * shift[place], x) * gradient.to(prediction.dtype)
        return torch.cat([guided, output[:, x.shape[1] :]], dim=1)


def checked_guidance(
    classes: Classes, guidance: float | None, null_label: int | str | None, *, is_untrained: bool = False
) -> tuple[float, int] | None:
    """The scale of classifier-free guidance and the null class; None without guidance.

    Args:
        classes: Of the network.
        guidance: The scale.
        null_label: The null class, where the model does not say which it is.
        is_untrained: Whether the network is known to have been trained without dropping labels.

    Warns:
        UserWarning: it was.

    Raises:
        ValueError: no finite number, no null class, or a null class without guidance.
    """
    if guidance is None:
        if null_label is not None:
            name, guided = spelt("null_label", "a null label"), advised("guidance")
            raise ValueError(f"{name} is for guidance: give {guided} as well, or leave it out")
        return None
    if isinstance(guidance, bool) or not isinstance(guidance, int | float) or not math.isfinite(guidance):
        raise ValueError(f"{spelt('guidance')} must be a finite number, 1 for none, got {shown(guidance)}")
    null = classes.null_of(null_label)
    if is_untrained:
        warnings.warn(
            f"no label was dropped in the training of this network, so its null class {null} means nothing, and "
            "guidance leads away from noise",
            stacklevel=5,
        )
    return float(guidance), null


def guided_output(
    x: Tensor,
    t: Tensor,
    strong: Tensor,
    weak: Tensor,
    scale: float | Tensor,
    interval: tuple[float, float] | None,
    rescale: float,
) -> Tensor:
    """A guided output [B, C or 2C, ...] of the stronger and the weaker one; the other arguments are the wrappers'."""
    channels = x.shape[1]
    first, base = strong[:, :channels], weak[:, :channels]
    guided = base + scale * (first - base)
    if rescale:
        dims = tuple(range(1, x.ndim))
        factor = first.std(dim=dims, keepdim=True) / guided.std(dim=dims, keepdim=True)
        guided = guided * (rescale * factor + (1 - rescale))
    if interval is not None:
        inside = (t >= interval[0]) & (t <= interval[1])
        guided = torch.where(per_sample(inside, x), guided, first)
    return torch.cat([guided, strong[:, channels:]], dim=1) if strong.shape[1] > channels else guided


def _checked_interval(interval: tuple[float, float] | None) -> tuple[float, float] | None:
    if interval is not None and not 0 <= interval[0] <= interval[1]:
        raise ValueError(f"interval must be (low, high) with 0 <= low <= high, got {interval!r}")
    return interval


def _doubled(value: Any, batch: int) -> Any:
    return torch.cat([value, value]) if isinstance(value, Tensor) and value.ndim and value.shape[0] == batch else value
