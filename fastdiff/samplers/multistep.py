"""Multistep solvers: one evaluation per step, and the past ones reused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.levels import Final, Ladder, LamMin, check_signal, table_from_rows
from fastdiff.samplers.method import (
    IMAGE,
    NOISE,
    NOISE_IN_RHO,
    REVERSE_SDE,
    Method,
    SolverType,
    Step,
    noise_in_time,
    with_solver_type,
)
from fastdiff.samplers.registry import sampler

# Below so many steps the last ones fall to lower orders, as the papers' codes do.
FEW_STEPS = 15


def row_order(i: int, num_rows: int, order: int, lower_order_final: bool | None, ends_clean: bool) -> int:
    """The order of row i: limited by the values at hand, and lower towards the end.

    The last row to a level without noise is of order 1, since log-SNR is infinite there.
    """
    lowers = num_rows < FEW_STEPS if lower_order_final is None else lower_order_final
    limit = min(order, i + 1)
    if lowers:
        limit = min(limit, num_rows - i)
    return 1 if ends_clean and i == num_rows - 1 else limit


@sampler
def dpmpp(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    clip: float | None = 1.0,
    compat: Literal["diffusers"] | None = None,
) -> CoefficientTable:
    """Coefficients of multistep DPM-Solver++, from noise to data.

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: 1 to 3. Order 1 is DDIM with eta = 0.
        solver_type: The second-order formula, both of order 2: "heun" is the exact one for a linear prediction.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lower_order_final: Let the last rows fall to lower orders; None does so for fewer than 15 steps.
        clip: Bound on the predicted x_0, in units of the data; None for no bound.
        compat: "diffusers" halves the second-derivative term of order 3 as that library and the authors' code do, which
            leaves it with order 2.

    Returns:
        Table of one row per evaluation, float64.

    Raises:
        ValueError: an option out of range.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    method = _dpm_method(IMAGE, solver_type, compat)
    return _multistep(
        "dpmpp", method, diffusion, ladder, order=order, lower_order_final=lower_order_final, clip=clip,
        own_options={"solver_type": solver_type},
    )  # fmt: skip


@sampler
def dpm_solver(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    compat: Literal["diffusers"] | None = None,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of multistep DPM-Solver, which integrates the noise prediction; nothing is clipped.

    Args, Returns, Raises: as `dpmpp`, and lam_min: least log(alpha / sigma) of a level; see `noisiest_position`.

    Source: Lu et al. (2022), arXiv:2206.00927; the multistep form: arXiv:2211.01095, appendix B.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min)
    method = _dpm_method(NOISE, solver_type, compat)
    return _multistep(
        "dpm_solver", method, diffusion, ladder, order=order, lower_order_final=lower_order_final,
        own_options={"solver_type": solver_type},
    )  # fmt: skip


@sampler
def dpmpp_sde(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 2,
    solver_type: SolverType = "midpoint",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    clip: float | None = 1.0,
    compat: Literal["diffusers"] | None = None,
) -> CoefficientTable:
    """Coefficients of SDE-DPM-Solver++: DPM-Solver++ on the reverse SDE, with fresh noise in every row but the last.

    Args, Returns, Raises: as `dpmpp`; with compat="diffusers", order 3 has their sign in its last term.

    Source: Lu et al. (2022), arXiv:2211.01095, eq. 18 and 19.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous)
    method = _dpm_method(REVERSE_SDE, solver_type, compat)
    return _multistep(
        "dpmpp_sde", method, diffusion, ladder, order=order, lower_order_final=lower_order_final, clip=clip,
        own_options={"solver_type": solver_type},
    )  # fmt: skip


@sampler
def dpmpp_2m(diffusion: Diffusion, steps: int | None = None, *, spacing: str = "trailing",
             timesteps: Sequence[float] | None = None, clip: float | None = 1.0) -> CoefficientTable:  # fmt: skip
    """DPM-Solver++(2M): `dpmpp` of order 2.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    return dpmpp(diffusion, steps, order=2, spacing=spacing, timesteps=timesteps, clip=clip)


@sampler
def dpmpp_3m(diffusion: Diffusion, steps: int | None = None, *, spacing: str = "trailing",
             timesteps: Sequence[float] | None = None, clip: float | None = 1.0) -> CoefficientTable:  # fmt: skip
    """DPM-Solver++(3M): `dpmpp` of order 3.

    Source: Lu et al. (2022), arXiv:2211.01095, algorithm 2 and appendix B.
    """
    return dpmpp(diffusion, steps, order=3, spacing=spacing, timesteps=timesteps, clip=clip)


@sampler
def deis(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 3,
    variable: Literal["log_rho", "t", "rho"] = "log_rho",
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lower_order_final: bool | None = None,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of DEIS: Adams-Bashforth on the noise prediction, exact in the linear part.

    The prediction is a polynomial through the past values in `variable`, with rho = sigma / alpha: in log rho
    (diffusers' "logrho"), in the timestep (tAB) or in rho (rhoAB).

    Args:
        diffusion: What the network was trained on.
        steps: Network evaluations, 1 to T; None for all T.
        order: 1 to 4 values; order 1 is DDIM.
        variable: See above.
        spacing: See `visited`, as for `timesteps`, `final` and `continuous`.
        lower_order_final: As in `dpmpp`.
        lam_min: Least log(alpha / sigma) of a level; "auto" is -2.5 where the network predicts the noise and the
            schedule ends below -6. See `noisiest_position`.

    Raises:
        ValueError: an option out of range.

    Source: Zhang and Chen (2023), arXiv:2204.13902, eq. 13 to 15 and table 1.
    """
    if variable not in ("log_rho", "t", "rho"):
        raise ValueError(f"variable must be 'log_rho', 't' or 'rho', got {variable!r}")
    methods = {"log_rho": NOISE, "t": noise_in_time(diffusion.schedule), "rho": NOISE_IN_RHO}
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min)
    return _multistep(
        "deis", methods[variable], diffusion, ladder, order=order, highest_order=4,
        lower_order_final=lower_order_final, own_options={"variable": variable},
    )  # fmt: skip


@sampler
def lms(
    diffusion: Diffusion,
    steps: int | None = None,
    *,
    order: int = 4,
    spacing: str = "trailing",
    timesteps: Sequence[float] | None = None,
    final: Final = "zero",
    continuous: bool = False,
    lam_min: LamMin = "auto",
) -> CoefficientTable:
    """Coefficients of the linear multistep method in sigma: `deis` in rho, at full order to the end.

    Args, Raises: as `deis`.

    Source: Crowson, k-diffusion, `sample_lms`; Karras et al. (2022), arXiv:2206.00364, eq. 3.
    """
    ladder = Ladder(steps, spacing, timesteps, final, continuous, lam_min)
    return _multistep("lms", NOISE_IN_RHO, diffusion, ladder, order=order, highest_order=4, lower_order_final=False)


def _dpm_method(method: Method, solver_type: SolverType, compat: Literal["diffusers"] | None) -> Method:
    """The method with a solver type's formula of order 2, and that library's of order 3 where asked for."""
    if compat not in (None, "diffusers"):
        raise ValueError(f"compat must be None or 'diffusers', got {compat!r}")
    method = with_solver_type(method, solver_type)
    if compat is None:
        return method
    return method.replacing(3, _diffusers_moment if method.noise is None else _diffusers_sde_moment)


def _diffusers_moment(step: Step, moments: Sequence[float]) -> float:
    """Their last term is the second derivative's, times half of it."""
    return 0.5 * moments[2]


def _diffusers_sde_moment(step: Step, moments: Sequence[float]) -> float:
    """In the SDE the constant of that term has the wrong sign."""
    return 0.5 * moments[2] - step.alpha_next


def _multistep(
    name: str,
    method: Method,
    diffusion: Diffusion,
    ladder: Ladder,
    *,
    order: int,
    highest_order: int = 3,
    lower_order_final: bool | None,
    clip: float | None = None,
    own_options: Mapping[str, object] | None = None,
) -> CoefficientTable:
    """Rows x' = A x + sum_k w_k f_k + s z through the value at each level and those before it."""
    order = whole_number("order", order, low=1, high=highest_order)
    levels = ladder.levels(diffusion)
    if method.predicts == "eps":
        check_signal(levels, name)
    count = len(levels)
    ends_clean = levels.ends_clean() and not method.reaches_zero
    rows = []
    for i, evaluation in enumerate(method.evaluations(levels, clip)):
        step, num_values = Step(levels, i, i + 1), row_order(i, count, order, lower_order_final, ends_clean)
        gain, weights = method.formula(step, range(i, i - num_values, -1))
        row = evaluation | {"cx": gain, "s": method.noise(step) if method.noise else 0.0}
        rows.append(row | {f"c{age}": weight for age, weight in enumerate(weights)})
    return table_from_rows(
        levels, rows, name, order=0 if method.noise else order, data_prediction=method.predicts == "x0",
        options={"order": order, **(own_options or {}), **ladder.options, "steps": count}, note=ladder.note(diffusion),
    )  # fmt: skip
