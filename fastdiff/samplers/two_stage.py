"""Euler, Heun and DPM2 in the noise level sigma / alpha, ancestral or not, and EDM's Heun with churn."""

from __future__ import annotations

import math
from collections.abc import Sequence

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import LEVEL_SPACINGS, Final, Ladder, LamMin
from fastdiff.samplers.registry import sampler
from fastdiff.samplers.two_stage_method import Churn, TwoStage, build


@sampler
def euler(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Euler's method in sigma / alpha, which is DDIM with eta = 0.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 1.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, eq. 4 and table 1; Crowson, k-diffusion, `sample_euler`.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    return build(TwoStage("euler"), diffusion, ladder, clip)


@sampler
def euler_ancestral(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 1.0,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Euler's method with ancestral noise, which is DDIM with the same eta.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        eta: Noise scale in [0, 1], no unit. 0 is `euler`; 1 has the variance of q(x_s | x_t, x_0).
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. No noise is drawn on the way to an end without noise.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `get_ancestral_step` and `sample_euler_ancestral`.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    return build(TwoStage("euler_ancestral", eta=eta), diffusion, ladder, clip, {"eta": eta})


@sampler(evaluations_per_step=2)
def heun(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of Heun's method in sigma / alpha: two evaluations per step, at both of its ends.

    A step that ends without noise, or begins without signal, is Euler's, with one evaluation. N levels thus take
    2 N - 1 evaluations, or 2 N with final="sigma_min". `steps` are spent exactly: if they do not come out even, the
    longest of the other steps, in log-SNR, is Euler's too, which keeps the order. There the second evaluation is worth
    least: it enters with the weight (rho / rho' - 1) / 2, which multiplies the network's errors. For that reason a step
    over which rho = sigma / alpha falls by more than a factor of 100 is always Euler's, unless `timesteps` are given:
    the first one from nearly pure noise, as on the cosine schedule.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to 2 T - 1, in all (not per level); None for T.
        spacing: Of the levels, see `visited`, as for `final` and `continuous`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 2.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 1 and table 1; Crowson, k-diffusion, `sample_heun`.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    return build(TwoStage("heun", second="end"), diffusion, ladder, clip)


@sampler(evaluations_per_step=2)
def dpm2(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of DPM2, which is DPM-Solver-2: a second evaluation half-way through each step in log-SNR.

    Where the times are whole, so is that of the middle level: the nearest one strictly inside the step, with the weight
    1 / (2 r) for its place r in the step, so that the order stays 2; a step with no timestep inside is Euler's.
    Otherwise as in `heun`: steps that end without noise are Euler's and `steps` are spent exactly.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all, 1 to T, or any number if `continuous`; None for T.
        spacing: Of the levels, see `visited`, as for `final` and `continuous`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. Order 2.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `sample_dpm_2`; Lu et al. (2022), arXiv:2206.00927, algorithm 1, and its general form
    with r_1 in the appendix.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    return build(TwoStage("dpm2", second="middle"), diffusion, ladder, clip)


@sampler(evaluations_per_step=2)
def dpm2_ancestral(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 1.0,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of DPM2 with ancestral noise; with eta = 1 the middle level of a step is the next level itself.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to 2 T - 1, in all (not per level); None for T. Spent exactly, see `heun`.
        eta: Noise scale in [0, 1], no unit. 0 is `dpm2`; 1 has the variance of q(x_s | x_t, x_0).
        spacing: Of the levels, see `visited`, as for `final` and `continuous`. Middle levels: see `dpm2`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. No noise is drawn on the way to an end without noise.

    Raises:
        ValueError: an option out of range.

    Source: Crowson, k-diffusion, `sample_dpm_2_ancestral`.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    method = TwoStage("dpm2_ancestral", second="middle", eta=eta)
    return build(method, diffusion, ladder, clip, {"eta": eta})


@sampler(evaluations_per_step=2)
def dpmpp_sde_singlestep(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    eta: float = 1.0,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    clip: float | None = 1.0,
) -> CoefficientTable:
    """Coefficients of DPM-Solver++ on the reverse SDE in single steps, the second evaluation half-way in log-SNR.

    The noise of a step's two halves is that of one Brownian path whose time is sigma / alpha, as in k-diffusion; it is
    two draws here, one in each row.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all, 1 to T, or any number if `continuous`; None for T. Spent exactly, see `heun`.
        eta: Noise scale in [0, 1], no unit. 0 is `dpmpp_singlestep`; 1 has the variance of q(x_s | x_t, x_0).
        spacing: Of the levels, see `visited`, as for `final` and `continuous`. Middle levels: see `dpm2`.
        timesteps: The levels themselves; the evaluations follow.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.

    Returns:
        Table of one row per evaluation, float64. No noise is drawn on the way to an end without noise.

    Raises:
        ValueError: an option out of range.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 1; on the SDE: Crowson, k-diffusion, `sample_dpmpp_sde`, as in
    diffusers' `DPMSolverSDEScheduler`.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    method = TwoStage("dpmpp_sde_singlestep", second="middle", eta=eta, on_path=True)
    return build(method, diffusion, ladder, clip, {"eta": eta})


@sampler(evaluations_per_step=2)
def edm(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    spacing: str = "karras",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool | None = None,
    clip: float | None = 1.0,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of EDM's stochastic sampler: Heun's method with noise added before each step ("churn").

    Each of the N steps from rho first raises the level to rho (1 + min(s_churn / N, sqrt(2) - 1)) with fresh noise, and
    evaluates the network there. The noise is drawn in the row before; the first state begins at the raised level. No
    level is raised above that of t = T-1. `steps` are spent as in `heun`; the factor from which on a step is Euler's is
    30 here.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations in all (not per level); None for T.
        s_churn: Amount of churn, at least 0, no unit. 0 is `heun` on the same levels.
        s_tmin: Least rho = sigma / alpha that is raised, at least 0.
        s_tmax: Largest rho that is raised, at least `s_tmin`.
        s_noise: Standard deviation of the churn noise, in units of what the levels call for; the paper takes 1.003
            and 1.007.
        spacing: Of the levels, see `visited`, as for `final`.
        timesteps: The levels themselves; the evaluations follow.
        continuous: Let levels, the raised ones too, fall between timesteps; None does so for spacings of noise levels.
            Otherwise they are moved to the nearest timesteps, and the noise with them.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        lam_min: Least log(alpha / sigma) of a level that a step begins at, before it is raised; "auto" is -2.5 for
            spacings of noise levels where the schedule ends below -6. See `noisiest_position`.

    Returns:
        Table of one row per evaluation, float64. Order 2 without churn. The last row draws no noise.

    Raises:
        ValueError: an option out of range.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2 and eq. 5.
    """
    if continuous is None:
        continuous = spacing in LEVEL_SPACINGS and timesteps is None
    if lam_min == "auto" and spacing not in LEVEL_SPACINGS:
        lam_min = None
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min, has_stages=True)
    churn = Churn(s_churn, s_tmin, s_tmax, s_noise)
    options = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax if s_tmax < math.inf else None}
    return build(
        TwoStage("edm", "end", churn=churn, longest=30.0), diffusion, ladder, clip, {**options, "s_noise": s_noise}
    )
