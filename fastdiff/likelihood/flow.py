"""The probability flow of a model: its ODE, and the likelihood by it.

In the variables u = x / alpha and rho = sigma / alpha the flow is du / drho = eps(alpha u, t), Song et al. (2021),
arXiv:2011.13456, eq. 13, in the form of Song, Meng, Ermon (2021), arXiv:2010.02502, eq. 14.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastdiff.likelihood.variational import checked_images, parts, standard_error
from fastdiff.nets.model import (
    Model,
    eval_mode,
    model_device,
    model_dtype,
    split_output,
)
from fastdiff.ops.reference.noise import torch_normals, torch_words
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.interpolation import time_at_position
from fastdiff.process.noise import Stream, check_seed
from fastdiff.samplers.levels import position_of, with_signal
from fastdiff.sampling.runge_kutta import integrate
from fastdiff.sampling.seeds import checked_ids
from fastdiff.tensors import per_sample

Divergence = Literal["rademacher", "gaussian", "exact"]

_LN2 = math.log(2.0)
_TOLERANCE, _NETWORK_TOLERANCE = 1e-6, 1e-4


@dataclass(frozen=True, eq=False)
class OdeLikelihood:
    """-log p(x) by the probability-flow ODE, in bits per dimension, for B images.

    Attributes:
        total: [B] float64. For discrete data, with the offset of the dequantisation.
        latent: [B, ...] float32 (float64 for float64 images), the state at t = T-1 that the image is mapped to.
        evaluations: Network evaluations in all, each with its derivatives.
        error_estimate: [B] float64, the integration's error in bits/dim as its step control saw it: the sum of the
            local errors' sizes, which is no bound on the error, but mostly far above it.
        probe_error: [B] float64, standard error of `total` over the probes of the divergence; 0 for the exact one, NaN
            for a single probe, which says nothing about it.
        steps: [B] int64, accepted steps.
        offset: What the dequantisation added to `total`, in bits/dim: log2((levels - 1) / 2); 0 for continuous data.
    """

    total: Tensor
    latent: Tensor
    evaluations: int
    error_estimate: Tensor
    probe_error: Tensor
    steps: Tensor
    offset: float

    @property
    def mean(self) -> float:
        """Mean of `total` over the images."""
        return float(self.total.mean())

    @property
    def standard_error(self) -> float:
        """Standard error of `mean` over the images; NaN for a single one."""
        return standard_error(self.total)

    def summary(self) -> dict[str, float]:
        """Means over the images, for reports."""
        return {
            "bits_per_dim": self.mean,
            "standard_error": self.standard_error,
            "offset": self.offset,
            "error_estimate": float(self.error_estimate.mean()),
            "probe_error": float(self.probe_error.mean()),
            "steps": float(self.steps.double().mean()),
        }


def ode(
    model: Model,
    diffusion: Diffusion,
    x: Tensor,
    *,
    divergence: Divergence = "rademacher",
    probes: int = 1,
    tolerance: float | None = None,
    levels: int | None = None,
    seed: int = 0,
    sample_ids: Tensor | Iterable[int] | None = None,
    model_kwargs: Mapping[str, Tensor] | None = None,
    batch_size: int = 64,
    max_steps: int = 1000,
    on_progress: Callable[[int, int], None] | None = None,
) -> OdeLikelihood:
    """The likelihood of the model that the probability-flow ODE defines, by the change of variables.

    Dormand and Prince's pair of orders 5 and 4 from the image to noise, in half the log-SNR as time. Each image has its
    own steps and leaves the batch when it is done: nothing couples the images of a batch. A `UNet` runs in PyTorch,
    since the engine has no derivatives. Between the timesteps
    log alpha is linear and the network is given fractional t, as float32.

    The end at t = 0: the network knows no less noise than that of its first timestep, sigma_0. Below it the score is
    held constant, at that of t = 0, so that the flow reaches the clean image itself; for Gaussian data of variance v
    this is right up to (sigma_0 / alpha_0)^4 / (4 v^2) nats per dimension, 4e-8 for the linear schedule and v = 0.25.
    The end at t = T-1: the latent's density is N(0, I), as the model's samples begin; where the schedule leaves some
    signal there (abar_T = 4e-5, linear), the data's own density differs by about abar_T.

    Discrete data are dequantised: uniform noise over a bin, of width 2 / (levels - 1), is added to each value, and
    log2((levels - 1) / 2) bits/dim to the result, which makes it, on average over that noise, an upper bound on the
    bits of the discrete values (Theis et al. 2016, arXiv:1511.01844). For 8 bits that is log2(127.5) = 6.994.

    Args:
        model: Any callable (x [B, C, ...], t [B], **model_kwargs) -> [B, C or 2C, ...] that PyTorch can differentiate
            in x, without coupling the samples; run in eval mode.
        diffusion: What the network was trained on. Its reverse variance plays no part.
        x: Images [B, C, ...], float32 or float64, or uint8.
        divergence: Of the drift. "rademacher" or "gaussian": Hutchinson's estimate v . J v with such probes v,
            unbiased, drawn once per image and kept along the way. "exact": the trace, with one backward pass per
            dimension.
        probes: Probes per image, at least 1; more of them also tell the estimate's error.
        tolerance: Of each step, in the state's own unit (about 1) per dimension, absolute and relative alike. None:
            1e-6 where the network computes in float64, else 1e-4. Trained networks are rough between the timesteps
            that they were trained on, and a narrower tolerance follows every ripple of theirs.
        levels: Number of values of discrete data, spaced evenly over [-1, 1]; None: 256 for uint8 images, and the
            density of the values themselves for floats.
        seed: In [0, 2^64): of probes and dequantisation.
        sample_ids: One whole number per image; 0..B-1 when None.
        model_kwargs: Tensors of one entry per image, passed to the model.
        batch_size: Images at a time; changes nothing but speed and memory.
        max_steps: Tried steps after which an image is given up.
        on_progress: Called with (images done, images in all).

    Returns:
        OdeLikelihood, on the CPU.

    Raises:
        ValueError: images that do not fit, arguments out of range, or an output that cannot be differentiated.
        RuntimeError: an image needs more than `max_steps` steps.

    Source: Song et al. (2021), arXiv:2011.13456, eq. 39 and appendix D.2; Hutchinson (1990); Dormand and Prince (1980).
    """
    if divergence not in get_args(Divergence):
        raise ValueError(f"unknown divergence {divergence!r}: {nearest_name(str(divergence), get_args(Divergence))}")
    for name, value in (("probes", probes), ("batch_size", batch_size), ("max_steps", max_steps)):
        whole_number(name, value, low=1)
    if tolerance is None:
        tolerance = _TOLERANCE if model_dtype(model, torch.float64) == torch.float64 else _NETWORK_TOLERANCE
    if not tolerance > 0:
        raise ValueError(f"tolerance must be positive, got {tolerance!r}")
    device = model_device(model, x, None)
    if levels is None and x.dtype == torch.uint8:
        levels = 256
    images = checked_images(x, levels, levels or 256).to(device)
    ids = checked_ids(sample_ids, images.shape[0], device)
    kwargs = {key: value.to(device) for key, value in (model_kwargs or {}).items()}
    start = images.double() if levels is None else dequantised(images, levels, seed, ids)
    offset = 0.0 if levels is None else math.log2((levels - 1) / 2)
    found = []
    with eval_mode(model):
        for part in parts(len(images), batch_size):
            flow = Flow(model, diffusion, {key: value[part] for key, value in kwargs.items()})
            vectors = None if divergence == "exact" else _probes(divergence, probes, start[part], seed, ids[part])
            found.append(_likelihood(flow, start[part], vectors, tolerance, max_steps))
            if on_progress is not None:
                on_progress(part.stop, len(images))
    nats, latent, error, probe_error, steps, evaluations = (torch.cat(each).cpu() for each in zip(*found, strict=True))
    unit = _LN2 * images[0].numel()
    return OdeLikelihood(
        total=offset - nats / unit,
        latent=latent.to(images.dtype),
        evaluations=int(evaluations.sum()),
        error_estimate=error / unit,
        probe_error=probe_error / unit,
        steps=steps,
        offset=offset,
    )


def dequantised(images: Tensor, levels: int, seed: int, ids: Tensor) -> Tensor:
    """Discrete images in [-1, 1] with uniform noise over each value's bin, float64; of (seed, sample id) alone."""
    count = images[0].numel()
    words = torch_words(seed, ids, count, Stream.DEQUANTIZE, torch.zeros(1, dtype=torch.int64, device=ids.device))
    uniform = (words[:, :count].double() + 0.5) * 2.0**-32
    return images.double() + (uniform.reshape(images.shape) - 0.5) * (2 / (levels - 1))


def _probes(kind: Divergence, probes: int, x: Tensor, seed: int, ids: Tensor) -> Tensor:
    """[B, K, ...] float64, probe k of a sample from the noise's row k."""
    check_seed(seed)
    rows = (torch.full((1,), k, dtype=torch.int64, device=ids.device) for k in range(probes))
    shape = tuple(x.shape[1:])
    vectors = torch.stack([torch_normals(seed, ids, shape, Stream.PROBE, row) for row in rows], dim=1).double()
    # The normals' signs are fair coins.
    return torch.where(vectors < 0, -1.0, 1.0).double() if kind == "rademacher" else vectors


def _likelihood(
    flow: Flow, x: Tensor, vectors: Tensor | None, tolerance: float, max_steps: int
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Per sample: log p in nats, latent, the integration's error, that of the probes, steps, evaluations."""
    width = 1 if vectors is None else vectors.shape[1]
    zeros = torch.zeros(x.shape[0], width, dtype=torch.float64, device=x.device)
    below = integrate(
        lambda w, u, which: flow.slope_below(u, which, vectors), x, zeros, 0.0, flow.below, tolerance, max_steps
    )
    above = integrate(
        lambda lam, y, which: flow.slope(lam, y, which, vectors),
        below.state * flow.alpha_min_noise,
        below.integrals + x[0].numel() * math.log(flow.alpha_min_noise),
        flow.lam_first,
        flow.lam_last,
        tolerance,
        max_steps,
    )
    latent = above.state.flatten(1)
    prior = -0.5 * (latent.square() + math.log(2 * math.pi)).sum(dim=1)
    spread = above.integrals.std(dim=1, correction=1) / math.sqrt(width) if width > 1 else zeros[:, 0] + math.nan
    return (
        prior + above.integrals.mean(dim=1),
        above.state,
        below.integral_error + above.integral_error,
        zeros[:, 0] if vectors is None else spread,
        below.steps + above.steps,
        below.evaluations + above.evaluations,
    )


class Flow:
    """The probability flow of a model, with the divergence of its slope.

    Attributes:
        lam_first: Half the log-SNR of t = 0.
        lam_last: That of t = T-1, or of the timestep before where no signal is left there, at an infinite distance.
        alpha_min_noise: alpha of t = 0.
        below: The length of the way from no noise to t = 0, in the variable w = rho^2 / (2 rho_0), in which the slope
            of u = x / alpha is the eps of t = 0 where the score is constant.

    Raises:
        ValueError: the schedule has one step, which leaves no signal.
    """

    def __init__(self, model: Model, diffusion: Diffusion, model_kwargs: Mapping[str, Tensor]) -> None:
        diffusion = with_signal(diffusion)
        half_log_snr = 0.5 * diffusion.schedule.log_snr
        if not np.isfinite(half_log_snr).all():
            raise ValueError("the flow needs some signal, and this schedule of one step leaves none")
        self.lam_first, self.lam_last = float(half_log_snr[0]), float(half_log_snr[-1])
        self.alpha_min_noise = math.exp(0.5 * float(diffusion.schedule.log_alphas_cumprod[0]))
        self.below = 0.5 * math.exp(-self.lam_first)
        self._model, self._diffusion, self._kwargs = model, diffusion, model_kwargs

    def slope_below(self, u: Tensor, which: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """du / dw and its divergence, below the noise of t = 0."""
        alpha = self.alpha_min_noise
        lam = torch.full((len(u),), self.lam_first, dtype=torch.float64, device=u.device)
        eps, divergence = self.eps(lam, alpha * u, which, vectors)
        return eps, alpha * divergence

    def slope(self, lam: Tensor, x: Tensor, which: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """dx / dlam = sigma^2 x - sigma eps and its divergence."""
        variance = torch.sigmoid(-2 * lam)
        sigma = variance.sqrt()
        eps, divergence = self.eps(lam, x, which, vectors)
        drift = per_sample(variance, x) * x - per_sample(sigma, x) * eps
        return drift, variance[:, None] * x[0].numel() - sigma[:, None] * divergence

    def eps(self, lam: Tensor, x: Tensor, which: Tensor, vectors: Tensor | None) -> tuple[Tensor, Tensor]:
        """The noise that the network predicts, and estimates of its divergence in x.

        Args:
            lam: [b] half log-SNR.
            x: [b, ...] float64.
            which: [b], the samples' numbers in the batch.
            vectors: [B, K, ...] probes of all samples, or None for the exact trace.

        Returns:
            eps [b, ...] and its divergences [b, K], K = 1 for the exact one.
        """
        diffusion, host = self._diffusion, lam.cpu().numpy()
        alpha, sigma = np.sqrt(1 / (1 + np.exp(-2 * host))), np.sqrt(1 / (1 + np.exp(2 * host)))
        network = diffusion.parametrization
        of_x, of_output, scale = (
            torch.from_numpy(np.broadcast_to(c, host.shape).copy()).to(x.device)
            for c in (*network.eps(alpha, sigma), network.input_scale(alpha, sigma))
        )
        times = time_at_position(diffusion.schedule, position_of(diffusion, host))
        t = torch.from_numpy(times).to(x.device, torch.float32)
        kwargs = {key: value[which] for key, value in self._kwargs.items()}
        with torch.enable_grad():
            seen = x.detach() if network.is_given_the_state else per_sample(scale, x) * x.detach()
            leaf = seen.to(model_dtype(self._model, torch.float64)).requires_grad_(True)
            output = split_output(self._model(leaf, t, **kwargs), leaf, diffusion.learned_variance)[0]
            traces = _traces(output, leaf, None if vectors is None else vectors[which])
        eps = per_sample(of_x, x) * x + per_sample(of_output, x) * output.detach().double()
        return eps, of_x[:, None] * x[0].numel() + (of_output * scale)[:, None] * traces


def _traces(output: Tensor, leaf: Tensor, vectors: Tensor | None) -> Tensor:
    """[b, K] float64: v . J v for each probe, or the trace of J = doutput / dleaf."""
    if not output.requires_grad:
        raise ValueError(
            "the model's output cannot be differentiated in x, which the ODE likelihood needs: compute it from x in "
            "PyTorch, without torch.no_grad()"
        )
    if vectors is None:
        flat, total = output.flatten(1), torch.zeros(len(leaf), dtype=torch.float64, device=leaf.device)
        for i in range(flat.shape[1]):
            (grad,) = torch.autograd.grad(flat[:, i].sum(), leaf, retain_graph=i + 1 < flat.shape[1])
            total += grad.flatten(1)[:, i].double()
        return total[:, None]
    traces = []
    for k in range(vectors.shape[1]):
        probe = vectors[:, k]
        (grad,) = torch.autograd.grad(
            output, leaf, grad_outputs=probe.to(output.dtype), retain_graph=k + 1 < vectors.shape[1]
        )
        traces.append((grad.double() * probe).flatten(1).sum(dim=1))
    return torch.stack(traces, dim=1)
