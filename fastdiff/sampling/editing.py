"""Going back and forth between images and noise: encode, decode, vary, interpolate, inpaint.

Everything is a table run by `fastdiff.sample`, so results depend on (seed, sample id) alone. Images are [B, C, ...],
about [-1, 1].
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastdiff import samplers
from fastdiff.engine.choose import Runner
from fastdiff.nets.model import Model, model_device
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.flow import flow_decode, flow_encode
from fastdiff.samplers.invertible import invertible_decode, invertible_encode
from fastdiff.samplers.levels import told
from fastdiff.sampling.known_pixels import Known, checked_mask
from fastdiff.sampling.progressive import Progress, progressive
from fastdiff.sampling.runner import sample
from fastdiff.sampling.seeds import checked_ids
from fastdiff.sampling.self_conditioning import ARGUMENT, is_self_conditioned
from fastdiff.tensors import compute_dtype, per_sample

__all__ = [
    "InterpolationMode",
    "Progress",
    "decode",
    "encode",
    "inpaint",
    "inpainting_table",
    "interpolate",
    "progressive",
    "round_trip_error",
    "vary",
    "varying_table",
]

InterpolationMode = Literal["slerp", "linear"]
# Images are in [-1, 1], and what a sampler made of them may lie somewhat outside; 0..255 does not.
_LARGEST = 1.5
# Below this angle, in radians, the arc between two directions is a straight line to rounding.
_SMALLEST_ANGLE = 1e-4


def encode(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    steps: int = 50,
    order: int = 2,
    exact: bool = False,
    iterations: int = 5,
    level: float = 1.0,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """Map images to noise along the probability flow, deterministically; `decode` maps them back.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        x: Images [B, C, ...] in about [-1, 1], floating point.
        steps: Steps along the way, of `order` or, where exact, `iterations` evaluations; at most T for order 1, exact.
        order: 1 is DDIM reversed at whole timesteps; 2 to 4 are Runge-Kutta steps evenly spaced in log-SNR.
        exact: Take DDIM's steps in a form that can be undone, and undo them by fixed-point iteration, so that decoding
            with `exact=True` and the same steps gives the image back to rounding; `round_trip_error` tells how nearly.
            `order` is then of no account.
        iterations: Of the fixed-point iteration, per step.
        level: How far to go: the share of the timesteps, in (0, 1].
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    A self-conditioned network is evaluated without an earlier prediction here, so that each way is the other's inverse.

    Returns:
        The state at that level, x's shape, float32 (float64 for float64); about N(0, I) for level 1. DDIM's steps go
        no further than the network can tell the signal, see `samplers.levels.told`.

    Raises:
        ValueError: images or options that do not fit.
    """
    x = _checked(x, "x")
    process = _down_to(diffusion, level)
    if exact:
        table = invertible_encode(process, _few(steps, process), iterations=iterations)
    elif order == 1:
        process = told(process)
        table = samplers.ddim_encode(process, _few(steps, process))
    else:
        table = flow_encode(process, steps, order=order)
    return _run(model, table, x, model_kwargs=_unconditioned(model, model_kwargs), runner=runner)


def decode(
    model: Model,
    diffusion: Diffusion,
    latent: Tensor,
    *,
    steps: int = 50,
    order: int = 2,
    exact: bool = False,
    level: float = 1.0,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """Map noise to images along the probability flow: the inverse of `encode` with the same options.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        latent: States [B, C, ...] at the level, floating point.
        steps: As `encode` was given.
        order: As `encode` was given; 1 is DDIM.
        exact: As `encode` was given; the decoder is then DDIM with a few more steps near the image.
        level: As `encode` was given.
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    Returns:
        Images, latent's shape, unclamped.

    Raises:
        ValueError: states or options that do not fit.
    """
    latent = _checked(latent, "latent", largest=None)
    process = _down_to(diffusion, level)
    if exact:
        table = invertible_decode(process, _few(steps, process))
    elif order == 1:
        process = told(process)
        table = samplers.ddim(process, _few(steps, process), clip=None)
    else:
        table = flow_decode(process, steps, order=order)
    return _run(model, table, latent, model_kwargs=_unconditioned(model, model_kwargs), runner=runner)


def _unconditioned(model: Model, model_kwargs: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """What the network is given where its output must follow from state and time alone: no earlier prediction."""
    kwargs = model_kwargs or {}
    return {**kwargs, ARGUMENT: None} if is_self_conditioned(model, kwargs) else model_kwargs


def round_trip_error(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    steps: int = 50,
    order: int = 2,
    exact: bool = False,
    iterations: int = 5,
    level: float = 1.0,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """[B] float64: the root mean square of decode(encode(x)) - x, in units of the data; arguments as `encode`."""
    latent = encode(
        model, diffusion, x, steps=steps, order=order, exact=exact, iterations=iterations, level=level,
        model_kwargs=model_kwargs, runner=runner,
    )  # fmt: skip
    back = decode(
        model, diffusion, latent, steps=steps, order=order, exact=exact, level=level, model_kwargs=model_kwargs,
        runner=runner,
    )  # fmt: skip
    return (back - x.to(back.device)).double().square().flatten(1).mean(dim=1).sqrt().cpu()


def vary(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    strength: float | Sequence[float] = 0.5,
    sampler: str = "ddim",
    steps: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """Noise images up to a level and bring them back: variations.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        x: Images [B, C, ...] in about [-1, 1], floating point.
        strength: Share of the timesteps to go back, in [0, 1], or several. 0 gives x itself; 1 gives the fresh sample
            that `sample` gives for the same sampler, steps, seed and ids, which x has no part in.
        sampler: What brings the images back; see `samplers.names()`.
        steps: Network evaluations from pure noise, of which the share `strength` is done; min(50, T) when None.
        seed: In [0, 2^64).
        sample_ids: One whole number per image; 0..B-1 when None.
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    Returns:
        Variations, x's shape; [S, *x.shape] for S strengths.

    Raises:
        ValueError: images or options that do not fit.

    Source: Meng et al. (2022), arXiv:2108.01073, algorithm 1 (SDEdit).
    """
    x = _checked(x, "x")
    ids = checked_ids(sample_ids, x.shape[0], model_device(model, x, None))
    shares, is_single = _checked_shares("strength", strength)
    # Checked for every strength, 0 included.
    steps = min(50, diffusion.num_timesteps) if steps is None else steps
    whole = samplers.build(sampler, diffusion, steps)
    found = []
    for share in shares:
        if share == 0:
            found.append(x.to(ids.device, copy=True))
            continue
        table = whole if share == 1 else varying_table(diffusion, sampler, steps, share)
        made = _run(
            model, table, x, seed=seed, sample_ids=ids, model_kwargs=model_kwargs, runner=runner, fresh=share == 1
        )
        found.append(made)
    return found[0] if is_single else torch.stack(found)


def varying_table(diffusion: Diffusion, sampler: str, steps: int, strength: float) -> CoefficientTable:
    """The table with which `vary` noises images and brings them back, for a strength in (0, 1); arguments as there."""
    left = max(1, min(round(steps * strength), round(diffusion.num_timesteps * strength)))
    return samplers.renoise(diffusion, left, strength=strength, sampler=sampler)


def interpolate(
    model: Model,
    diffusion: Diffusion,
    a: Tensor,
    b: Tensor,
    *,
    weight: float | Sequence[float] = 0.5,
    level: float = 1.0,
    mode: InterpolationMode = "slerp",
    stochastic: bool = False,
    steps: int = 50,
    order: int = 2,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """Mix images in the space of their noise.

    Both are brought to a noise level, mixed there, and the mixture is decoded along the probability flow.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        a: Images [B, C, ...] in about [-1, 1], floating point.
        b: Images of the same shape.
        weight: Of b, in [0, 1], or several: 0 gives a and 1 gives b, up to the round trip's error.
        level: Share of the timesteps, in [0, 1]: 0 mixes pixels, 1 mixes pure noise.
        mode: "slerp" goes along the arc between the two states, per sample, and keeps their norm; "linear" along the
            line, which makes a mixture of independent noise too quiet for its level.
        stochastic: Bring the images to the level by adding noise, the same to both, as Ho does with the forward
            process, instead of encoding them; the ends then are variations of a and b.
        steps: See `encode`, as for `order`.
        order: Of the solver, 1 to 4.
        seed: In [0, 2^64), where stochastic.
        sample_ids: One whole number per image, where stochastic; 0..B-1 when None.
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    Returns:
        Mixtures, a's shape; [W, *a.shape] for W weights.

    Raises:
        ValueError: images or options that do not fit.

    Source: Ho et al. (2020), arXiv:2006.11239, section 4.3; Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 67.
    """
    a, b = _checked(a, "a"), _checked(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"a and b must have one shape, got {list(a.shape)} and {list(b.shape)}")
    if mode not in get_args(InterpolationMode):
        raise ValueError(f"unknown {spelt('mode')} {mode!r}: {nearest_name(str(mode), get_args(InterpolationMode))}")
    weights, is_single = _checked_shares("weight", weight)
    if not 0 <= level <= 1:
        raise ValueError(f"{spelt('level')} must be in [0, 1], the share of the timesteps to go back, got {level!r}")
    mix = slerp if mode == "slerp" else torch.lerp
    if level == 0:
        found = [mix(a, b, share) for share in weights]
    else:
        process = _down_to(diffusion, level)

        def noised(x: Tensor) -> Tensor:
            if stochastic:
                noising = _noising(process)
                return _run(
                    model, noising, x, seed=seed, sample_ids=sample_ids, model_kwargs=model_kwargs, runner=runner
                )
            return encode(model, process, x, steps=steps, order=order, model_kwargs=model_kwargs, runner=runner)

        ends = noised(a), noised(b)
        found = [
            decode(
                model, process, mix(*ends, share), steps=steps, order=order, model_kwargs=model_kwargs, runner=runner
            )
            for share in weights
        ]
    return found[0] if is_single else torch.stack(found)


def slerp(a: Tensor, b: Tensor, weight: float) -> Tensor:
    """The point at `weight` on the arc from a to b, each sample [B, ...] as one vector; the norm goes evenly.

    Source: Shoemake (1985), Animating rotation with quaternion curves.
    """
    flat_a, flat_b = a.double().flatten(1), b.double().flatten(1)
    norms = flat_a.norm(dim=1), flat_b.norm(dim=1)
    cosine = (flat_a * flat_b).sum(dim=1) / (norms[0] * norms[1]).clamp(min=1e-300)
    angle = torch.acos(cosine.clamp(-1, 1))
    # Along one line, in either direction, there is no arc.
    straight = torch.sin(angle) < _SMALLEST_ANGLE
    safe = torch.where(straight, 1.0, angle)
    share_a = torch.where(straight, 1 - weight, torch.sin((1 - weight) * safe) / torch.sin(safe))
    share_b = torch.where(straight, weight, torch.sin(weight * safe) / torch.sin(safe))
    return (per_sample(share_a, a) * a.double() + per_sample(share_b, b) * b.double()).to(a.dtype)


def inpaint(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    mask: Tensor,
    *,
    steps: int | None = None,
    jump_length: int = 10,
    jump_repeats: int = 5,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
    runner: Runner = "auto",
) -> Tensor:
    """Fill the unknown pixels of images, by RePaint: ancestral sampling with jumps back to more noise.

    After each step the known pixels are put back, noised to the step's level; the jumps let both parts agree.

    Args:
        model: Any callable; see `fastdiff.sample`.
        diffusion: What the network was trained on.
        x: Images [B, C, ...] in about [-1, 1], floating point; what stands in the unknown pixels is of no account, but
            must be finite.
        mask: True, or 1, where a pixel is known and kept, as in the paper. Boolean or 0 and 1, of a shape that
            broadcasts to x's: [H, W], [B, 1, H, W], ...
        steps: Distinct timesteps, 1 to T; min(50, T) when None. There are more evaluations; see `samplers.repaint`.
        jump_length: Timesteps in a jump.
        jump_repeats: How often each place is sampled; 1 for no jumps.
        seed: In [0, 2^64).
        sample_ids: One whole number per image; 0..B-1 when None.
        model_kwargs: Passed to the model at each call.
        runner: See `fastdiff.sample`.

    Returns:
        Images of x's shape; known pixels are x's own, bit for bit.

    Raises:
        ValueError: images, a mask or options that do not fit.

    Source: Lugmayr et al. (2022), arXiv:2201.09865, algorithm 1.
    """
    x = _checked(x, "x")
    keep = checked_mask(mask, x)
    table = inpainting_table(diffusion, steps, jump_length=jump_length, jump_repeats=jump_repeats)
    known = Known(x, keep)
    filled = _run(
        model, table, x, seed=seed, sample_ids=sample_ids, model_kwargs=model_kwargs, runner=runner, fresh=True,
        known=known,
    )  # fmt: skip
    return torch.where(keep.to(filled.device), x.to(filled.device), filled)


def inpainting_table(
    diffusion: Diffusion, steps: int | None = None, *, jump_length: int = 10, jump_repeats: int = 5
) -> CoefficientTable:
    """The table of `inpaint`; arguments as there."""
    steps = min(50, diffusion.num_timesteps) if steps is None else steps
    return samplers.repaint(diffusion, steps, jump_length=jump_length, jump_repeats=jump_repeats)


def _run(
    model: Model,
    table: CoefficientTable,
    x: Tensor,
    *,
    model_kwargs: Mapping[str, Any] | None,
    runner: Runner,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    fresh: bool = False,
    known: Known | None = None,
) -> Tensor:
    """Run the table from x, or from fresh noise of its shape and type."""
    return sample(
        model, table, shape=tuple(x.shape), seed=seed, sample_ids=sample_ids, model_kwargs=model_kwargs,
        x_init=None if fresh else x, runner=runner, device=model_device(model, x, None), dtype=compute_dtype(x),
        progress=False, known=known,
    )  # fmt: skip


def _noising(process: Diffusion) -> CoefficientTable:
    """One row without an evaluation: x' = alpha x + sigma z at the level of t = T-1."""
    alphas, sigmas = process.signal_noise()
    t = process.schedule.timesteps[-1]
    columns = {"t": [t], "evaluate": [0.0], "cx": [alphas[-1]], "s": [sigmas[-1]]}
    return CoefficientTable(columns, "noise", init_scale=0.0, alphas=[1.0, alphas[-1]], sigmas=[0.0, sigmas[-1]])


def _down_to(diffusion: Diffusion, level: float) -> Diffusion:
    """The process up to the share `level` of its timesteps."""
    if not 0 < level <= 1:
        raise ValueError(f"{spelt('level')} must be in (0, 1], the share of the timesteps to go back, got {level!r}")
    return diffusion.subset(range(max(1, round(level * diffusion.num_timesteps)))) if level < 1 else diffusion


def _checked_shares(name: str, value: float | Sequence[float]) -> tuple[list[float], bool]:
    """Numbers in [0, 1], and whether it is a single one rather than a list."""
    try:
        numbers = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if numbers.ndim > 1 or numbers.size == 0:
        raise ValueError(f"{spelt(name)} must be one number or several, got {value!r}")
    if not ((numbers >= 0) & (numbers <= 1)).all():
        raise ValueError(f"{spelt(name)} must be in [0, 1], got {value!r}")
    return numbers.reshape(-1).tolist(), numbers.ndim == 0


def _few(steps: int, process: Diffusion) -> int:
    return min(steps, process.num_timesteps)


def _checked(x: Tensor, name: str, largest: float | None = _LARGEST) -> Tensor:
    if x.ndim < 2 or x.shape[0] == 0 or not x.is_floating_point():
        raise ValueError(
            f"{name} must be floating point [B, C, ...] with at least one image, got {x.dtype} {list(x.shape)}; "
            "stored values go through DataScaling.to_model first"
        )
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"{name} holds NaN or infinite values")
    if largest is not None and float(x.abs().max()) > largest:
        raise ValueError(f"{name} must be images in [-1, 1], got values from {float(x.min()):g} to {float(x.max()):g}")
    return x
