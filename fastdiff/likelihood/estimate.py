"""Statistics of a network's eps over data, per timestep: what `samplers.analytic` builds its tables from."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.nets.model import (
    Model,
    eval_mode,
    model_device,
    model_dtype,
    network_times,
    split_output,
)
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream
from fastdiff.process.schedule import Array
from fastdiff.sampling.seeds import checked_ids
from fastdiff.tensors import compute_dtype, per_sample


def eps_moment(
    model: Model,
    diffusion: Diffusion,
    images: Tensor,
    *,
    levels: int = 256,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Mean square of the network's eps, E|eps(x_t, t)|^2 per element, with one x_t per image and timestep.

    The noise is that of `likelihood.bound` for the same seed and sample ids, so nothing depends on the batch size.

    Args:
        model: Any callable (x [B, C, ...], t [B], **model_kwargs) -> [B, C or 2C, ...]; run in eval mode.
        diffusion: What the network was trained on, or a respacing of it.
        images: [B, C, ...] in [-1, 1], float32 or float64, or uint8 in [0, levels). A few hundred are enough for a few
            percent; each costs T evaluations.
        levels: Number of values of uint8 images.
        seed: In [0, 2^64).
        sample_ids: One whole number per image; 0..B-1 when None.
        model_kwargs: Tensors of one entry per image, passed to the model.
        batch_size: Evaluations in one call of the model.
        on_progress: Called with (evaluations done, evaluations in all).

    Returns:
        [T] float64, no unit: from 0 to 1 for a perfect network.

    Raises:
        ValueError: no images, images that are not finite, or shapes that do not fit.

    Source: Bao, Li, Zhu, Zhang (2022), arXiv:2201.06503, Gamma of theorem 1; sigma^2 |score|^2 = |eps|^2.
    """
    return _mean_square(
        model, diffusion, images, of_error=False, levels=levels, seed=seed, sample_ids=sample_ids,
        model_kwargs=model_kwargs, batch_size=batch_size, on_progress=on_progress,
    )  # fmt: skip


def eps_error(
    model: Model,
    diffusion: Diffusion,
    images: Tensor,
    *,
    levels: int = 256,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 256,
    on_progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Mean squared error of the network's eps, E|eps - eps(x_t, t)|^2 per element.

    Args, Returns, Raises: as `eps_moment`. A network of another prediction is turned into eps first; for a perfect one
    the two add up to 1.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 14, for one t at a time.
    """
    return _mean_square(
        model, diffusion, images, of_error=True, levels=levels, seed=seed, sample_ids=sample_ids,
        model_kwargs=model_kwargs, batch_size=batch_size, on_progress=on_progress,
    )  # fmt: skip


def _mean_square(
    model: Model,
    diffusion: Diffusion,
    images: Tensor,
    *,
    of_error: bool,
    levels: int,
    seed: int,
    sample_ids: Tensor | Iterable[int] | None,
    model_kwargs: Mapping[str, Tensor] | None,
    batch_size: int,
    on_progress: Callable[[int, int], None] | None,
) -> Array:
    if images.ndim < 2 or images.shape[0] == 0:
        raise ValueError(f"images must be at least one image, [B, C, ...], got shape {list(images.shape)}")
    if images.dtype not in (torch.uint8, torch.float32, torch.float64):
        raise ValueError(f"images must be float32, float64 or uint8, got {images.dtype}")
    if images.is_floating_point() and not bool(torch.isfinite(images).all()):
        raise ValueError("images hold NaN or infinite values")
    if images.dtype == torch.uint8 and int(images.max()) >= levels:
        raise ValueError(f"uint8 images must be in [0, {levels}), got {int(images.max())}: give the data's own levels")
    batch_size = whole_number("batch_size", batch_size, low=1)
    device = model_device(model, images, None)
    images = images.to(device)
    batch, num_timesteps = images.shape[0], diffusion.num_timesteps
    ids = checked_ids(sample_ids, batch, device)
    kwargs = {key: value.to(device) for key, value in (model_kwargs or {}).items()}
    dtype = compute_dtype(images)
    noising = torch.tensor(diffusion.noising_table(), dtype=dtype, device=device)
    of_state, of_output = diffusion.eps_coefficients()
    # x_t is what the network is given.
    coefficients = of_state / diffusion.input_scale(), of_output
    ex, em = (torch.tensor(values, dtype=dtype, device=device) for values in coefficients)
    times = network_times(diffusion, device)
    total = num_timesteps * batch
    squares = torch.empty(total, dtype=torch.float64)
    with torch.no_grad(), eval_mode(model):
        for start in range(0, total, batch_size):
            pair = torch.arange(start, min(start + batch_size, total), device=device)
            t, image = pair // batch, pair % batch
            x_t, target = ops.diffuse(
                images[image], t, noising, seed=seed, sample_ids=ids[image], row=t, stream=Stream.LIKELIHOOD,
                levels=levels, target=of_error,
            )  # fmt: skip
            # A copy: the model may write to its input, which is read again below.
            given = x_t.to(model_dtype(model, dtype), copy=True)
            output = model(given, times[t], **{k: v[image] for k, v in kwargs.items()})
            output = split_output(output, x_t, diffusion.learned_variance)[0].to(dtype)
            # eps = ex x + em m is linear in the output, so its error is em times the output's: no difference of large
            # numbers where sigma is small.
            if of_error:
                value = per_sample(em[t], x_t) * (output - target)
            else:
                value = per_sample(ex[t], x_t) * x_t + per_sample(em[t], x_t) * output
            squares[start : start + len(pair)] = value.double().square().flatten(1).mean(dim=1).cpu()
            if on_progress is not None:
                on_progress(start + len(pair), total)
    mean: Array = squares.reshape(num_timesteps, batch).mean(dim=1).numpy()
    return mean
