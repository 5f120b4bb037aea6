"""k-diffusion's `sampling`: its samplers, its lists of levels, and EDM's sampler.

A `model` here is a denoiser D(x; sigma), called as model(x, sigma [B], **extra_args), for states x = x_0 + sigma eps.
`external` makes one of a network that predicts eps or v, and goes the other way.

Noise is drawn where k-diffusion draws it, with PyTorch's default generator, so that a seed gives the same images as
there. The samplers on SDEs take theirs from a Brownian path, `BrownianTreeNoiseSampler`, whose numbers are fastdiff's
and not torchsde's.

Source: Crowson, k-diffusion, sampling.py; Karras et al. (2022), arXiv:2206.00364, algorithm 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.k_diffusion import sigmas as sigma_lists
from fastdiff.compat.k_diffusion._adaptive import sample_dpm_adaptive
from fastdiff.compat.k_diffusion._brownian import BrownianTreeNoiseSampler
from fastdiff.compat.k_diffusion._missing import missing
from fastdiff.compat.k_diffusion._steps import (
    Callback,
    Churn,
    Denoiser,
    NoiseSampler,
    ancestral,
    check_ends,
    churned,
    default_noise_sampler,
    falling,
    falling_or_even,
    lms_rising,
    multistep,
    multistep_sde,
    one_way,
    run,
    singlestep,
    two_stage_sde,
)
from fastdiff.compat.k_diffusion.sigmas import *  # noqa: F403
from fastdiff.compat.k_diffusion.sigmas import get_ancestral_step, to_d
from fastdiff.process.checks import whole_number
from fastdiff.sampling.runge_kutta import integrate

__all__ = [
    "BrownianTreeNoiseSampler",
    "default_noise_sampler",
    "edm_sampler",
    "log_likelihood",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
]
__all__ += sigma_lists.__all__

_ELSEWHERE = {
    "BatchedBrownianTree": "BrownianTreeNoiseSampler needs no trees",
    "DPMSolver": "sample_dpm_fast and sample_dpm_adaptive are its two ways, as functions",
    "PIDStepSizeController": "sample_dpm_adaptive has its arguments",
    "linear_multistep_coeff": "sample_lms has its own",
}
# Of `log_likelihood`, tried ones.
_MOST_STEPS = 10_000


def sample_euler(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Euler's method, with churn.

    Args:
        model: D(x; sigma), called as model(x, sigma [B], **extra_args).
        x: The state at sigmas[0], [B, C, ...], float32 or float64; it is left as it is.
        sigmas: [N + 1], falling strictly, to 0 or above, or rising strictly from above 0, from data to noise; where a
            sampler takes eta, it must then be 0.
        extra_args: Keyword arguments of the model.
        callback: Called at each step, before it is taken, with a dict of x, i, sigma, sigma_hat and denoised. It may
            write to x in place, as in k-diffusion: the slope has been taken before.
        disable: Taken for k-diffusion's sake: there is no progress bar.
        s_churn: Amount of noise added before steps, at least 0; s_tmin, s_tmax: the levels where it is; s_noise: its
            standard deviation in units of what the levels call for.

    Returns:
        The state at the last sigma.

    Raises:
        ValueError: sigmas that neither fall nor rise.
    """
    steps = churned("euler", one_way(sigmas), Churn(s_churn, s_tmin, s_tmax, s_noise))
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, slope_first=True)


def sample_heun(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """Heun's method, with churn: algorithm 2 of Karras et al. (2022). Arguments as `sample_euler`."""
    steps = churned("heun", one_way(sigmas), Churn(s_churn, s_tmin, s_tmax, s_noise))
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, slope_first=True)


def sample_dpm_2(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, s_churn: float = 0.0, s_tmin: float = 0.0, s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:  # fmt: skip
    """DPM-Solver-2 with its second evaluation half-way in log sigma, with churn. Arguments as `sample_euler`."""
    steps = churned("dpm2", one_way(sigmas), Churn(s_churn, s_tmin, s_tmax, s_noise))
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, slope_first=True)


def sample_euler_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """Euler's method with ancestral noise.

    Args:
        model, x, sigmas, extra_args, callback, disable: as `sample_euler`.
        eta: Noise scale; 1 has the variance of the exact reverse step.
        s_noise: Factor of the noise.
        noise_sampler: (sigma, sigma_next) -> noise of x's shape; torch.randn_like when None.
    """
    steps = ancestral("euler", falling_or_even(sigmas, eta), eta, s_noise)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_dpm_2_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver-2 with ancestral noise. Arguments as `sample_euler_ancestral`."""
    steps = ancestral("dpm2", falling_or_even(sigmas, eta), eta, s_noise)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_dpmpp_2s_ancestral(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2S) with ancestral noise. Arguments as `sample_euler_ancestral`."""
    steps = ancestral("dpmpp_2s", falling_or_even(sigmas, eta), eta, s_noise)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_lms(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, order: int = 4,
) -> Tensor:  # fmt: skip
    """The linear multistep method of order 1 to 4, with exact integrals. Other arguments as `sample_euler`."""
    levels = one_way(sigmas)
    rises = levels[-1] > levels[0]
    steps = lms_rising(levels, order) if rises else multistep(samplers.lms, levels, order=order)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, slope_first=True)


def sample_dpmpp_2m(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M). Arguments as `sample_euler`."""
    levels = one_way(sigmas)
    if levels[-1] > levels[0]:
        steps = multistep_sde(levels, 2, eta=0.0, s_noise=0.0)
    else:
        steps = multistep(samplers.dpmpp, levels, clip=None, lower_order_final=False)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback)


def sample_dpmpp_2m_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
    solver_type: Literal["midpoint", "heun"] = "midpoint",
) -> Tensor:  # fmt: skip
    """DPM-Solver++(2M) on an SDE.

    Args:
        model, x, sigmas, extra_args, callback, disable: as `sample_euler`.
        eta: Scale of the SDE's noise; 1 is the exact reverse process, 0 has none.
        s_noise: Factor of the noise.
        noise_sampler: (sigma, sigma_next) -> noise of x's shape; a `BrownianTreeNoiseSampler` when None.
        solver_type: How the last prediction comes in.

    Raises:
        ValueError: another solver_type, or sigmas that do not fall.
    """
    if solver_type not in ("heun", "midpoint"):
        raise ValueError(f"solver_type must be 'heun' or 'midpoint', got {solver_type!r}")
    steps = multistep_sde(falling_or_even(sigmas, eta), 2, eta, s_noise, heun=solver_type == "heun")
    noise_sampler = noise_sampler or _path(x, sigmas)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_dpmpp_3m_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver++(3M) on an SDE. Arguments as `sample_dpmpp_2m_sde`."""
    steps = multistep_sde(falling_or_even(sigmas, eta), 3, eta, s_noise)
    noise_sampler = noise_sampler or _path(x, sigmas)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_dpmpp_sde(
    model: Denoiser, x: Tensor, sigmas: Tensor, extra_args: Mapping[str, Any] | None = None, callback: Callback = None,
    disable: bool | None = None, eta: float = 1.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
    r: float = 1 / 2,
) -> Tensor:  # fmt: skip
    """DPM-Solver++ (stochastic): two evaluations per step, the second a share r of the way in log sigma.

    Its two draws belong to intervals that overlap, so that a `noise_sampler` of one's own should be a path as well.
    Other arguments as `sample_dpmpp_2m_sde`.

    Raises:
        ValueError: r outside (0, 1], or sigmas that do not fall.
    """
    if not 0 < r <= 1:
        raise ValueError(f"r must be in (0, 1], got {r}")
    steps = two_stage_sde(falling_or_even(sigmas, eta), eta, s_noise, r)
    noise_sampler = noise_sampler or _path(x, sigmas)
    return run(model, x, sigmas, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler)


def sample_dpm_fast(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, n: int,
    extra_args: Mapping[str, Any] | None = None, callback: Callback = None, disable: bool | None = None,
    eta: float = 0.0, s_noise: float = 1.0, noise_sampler: NoiseSampler = None,
) -> Tensor:  # fmt: skip
    """DPM-Solver-fast: n evaluations in steps of order 3, uniform in log sigma, with one lower step at the end or two.

    Args:
        model, x, extra_args, callback, disable: as `sample_euler`; the callback is told t = -log sigma as well.
        sigma_min: The last level. Above sigma_max, the way is from data to noise.
        sigma_max: The level of x.
        n: Evaluations, at least 1.
        eta: Scale of ancestral noise.
        s_noise: Factor of the noise.
        noise_sampler: (sigma, sigma_next) -> noise of x's shape; torch.randn_like when None.

    Raises:
        ValueError: levels that are not positive, n below 1, or noise on the way to noise.

    Source: Lu et al. (2022), arXiv:2206.00927, section 3.3 and appendix D.3.
    """
    start, end = check_ends(sigma_max, sigma_min, eta)
    n = whole_number("n", n, low=1)
    num = n // 3 + 1
    orders = [3] * (num - 2) + [2, 1] if n % 3 == 0 else [3] * (num - 1) + [n % 3]
    levels = [start * (end / start) ** (i / num) for i in range(num)] + [end]
    steps = []
    for i, order in enumerate(orders):
        sigma, after = levels[i], levels[i + 1]
        down, up = after, 0.0
        if eta:
            down = max(end, get_ancestral_step(sigma, after, eta)[0])
            up = math.sqrt(after**2 - down**2)
        steps.append(singlestep(i, order, sigma, down, up * s_noise, after))
    levels_of_x = torch.tensor(levels, dtype=x.dtype, device=x.device)
    return run(
        model, x, levels_of_x, steps, extra_args=extra_args, callback=callback, noise_sampler=noise_sampler,
        reports_time=True, slope_first=True,
    )  # fmt: skip


@torch.no_grad()
def log_likelihood(
    model: Denoiser, x: Tensor, sigma_min: float, sigma_max: float, extra_args: Mapping[str, Any] | None = None,
    atol: float = 1e-4, rtol: float = 1e-4,
) -> tuple[Tensor, dict[str, int]]:  # fmt: skip
    """Log-density in nats by the probability flow, with one random probe of the divergence.

    The probe is drawn from PyTorch's generator as there. The adaptive steps are each sample's own, so that a sample's
    result does not depend on its batch; k-diffusion's error is taken over all of it.

    Args:
        model: D(x; sigma), differentiable.
        x: Data at the level sigma_min, [B, C, ...].
        sigma_min: The first level.
        sigma_max: The last, where the state is taken for noise alone.
        extra_args: Keyword arguments of the model.
        atol: Tolerance of a step; the smaller one of it and rtol is kept to, relative to 1 + |x|.
        rtol: See atol.

    Returns:
        [B] log-densities, and {"fevals": evaluations of the sample that took most}.

    Raises:
        RuntimeError: the model's output is not finite, or the tolerance asks for too many steps.

    Source: Song et al. (2021), arXiv:2011.13456, appendix D.2; k-diffusion, `log_likelihood`.
    """
    probe = torch.randint_like(x, 2) * 2 - 1

    def slope(sigma: Tensor, state: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        chosen = {name: _of_samples(value, numbers, len(x)) for name, value in (extra_args or {}).items()}
        level, v = sigma.to(x.dtype), probe[numbers]
        with torch.enable_grad():
            y = state.to(x.dtype).detach().requires_grad_()
            d = to_d(y, level, model(y, level, **chosen))
            gradient = torch.autograd.grad((d * v).sum(), y)[0]
        return d.detach().double(), (v * gradient).flatten(1).sum(dim=1, keepdim=True).double()

    zeros = torch.zeros(len(x), 1, dtype=torch.float64, device=x.device)
    found = integrate(slope, x.double(), zeros, float(sigma_min), float(sigma_max), min(atol, rtol), _MOST_STEPS)
    prior = torch.distributions.Normal(0.0, float(sigma_max)).log_prob(found.state).flatten(1).sum(dim=1)
    return (prior + found.integrals[:, 0]).to(x.dtype), {"fevals": int(found.evaluations.max())}


def _of_samples(value: Any, numbers: Tensor, batch: int) -> Any:
    """An argument for some of the samples, where it has an entry for each."""
    is_per_sample = isinstance(value, Tensor) and value.ndim and value.shape[0] == batch
    return value[numbers] if is_per_sample else value


def edm_sampler(
    net: Any, latents: Tensor, class_labels: Tensor | None = None,
    randn_like: Callable[[Tensor], Tensor] = torch.randn_like,
    num_steps: int = 18, sigma_min: float = 0.002, sigma_max: float = 80, rho: float = 7, S_churn: float = 0,
    S_min: float = 0, S_max: float = float("inf"), S_noise: float = 1,
) -> Tensor:  # fmt: skip
    """EDM's `edm_sampler`: Heun in float64 with churn; `net(x, sigma, class_labels)` is a denoiser with sigma_min,
    sigma_max and round_sigma.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2; NVlabs/edm, generate.py.
    """
    sigma_min, sigma_max = max(sigma_min, float(net.sigma_min)), min(sigma_max, float(net.sigma_max))
    ramp = torch.arange(num_steps, dtype=torch.float64, device=latents.device) / max(num_steps - 1, 1)
    sigmas = (sigma_max ** (1 / rho) + ramp * (sigma_min ** (1 / rho) - sigma_max ** (1 / rho))) ** rho
    sigmas = torch.cat([torch.as_tensor(net.round_sigma(sigmas)), torch.zeros_like(sigmas[:1])])

    def rounded(level: float) -> float:
        return float(net.round_sigma(torch.as_tensor(level, dtype=torch.float64)))

    def model(state: Tensor, sigma: Tensor) -> Tensor:
        return net(state, sigma, class_labels).to(torch.float64)  # type: ignore[no-any-return]

    steps = churned("heun", falling(sigmas), Churn(S_churn, S_min, S_max, S_noise, rounded))
    x = latents.to(torch.float64) * sigmas[0]
    return run(model, x, sigmas, steps, noise_sampler=lambda *_: randn_like(x))


def _path(x: Tensor, sigmas: Tensor) -> BrownianTreeNoiseSampler:
    return BrownianTreeNoiseSampler(x, sigmas[sigmas > 0].min(), sigmas.max())


def __getattr__(name: str) -> Any:
    return missing(name, __name__, _ELSEWHERE)
