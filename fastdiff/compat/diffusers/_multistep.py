"""Drop-ins that integrate from level to level: PNDM, DPM-Solver, UniPC and DEIS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.diffusers._base import BySigma, FusedScheduler, Generators, place_in
from fastdiff.compat.diffusers._run import Run, output_of
from fastdiff.compat.levels import Levels, with_times
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.pndm import ADAMS_BASHFORTH

# Below so many steps the last ones are of lower order.
_FEW_STEPS = 15


def _lowers_order_at_end(scheduler: Any) -> bool:
    return bool(scheduler.config.lower_order_final) and len(scheduler.timesteps) < _FEW_STEPS


def dpmpp_table(scheduler: Any, levels: Levels, build: Callable[..., CoefficientTable]) -> CoefficientTable:
    """The table of a multistep DPM-Solver by a scheduler's configuration, over the levels."""
    config = scheduler.config
    clip: dict[str, Any] = {} if build is samplers.dpm_solver else {"clip": None}

    def table(order: int) -> CoefficientTable:
        return levels.table(
            build, order=order, solver_type=config.solver_type, lower_order_final=_lowers_order_at_end(scheduler),
            compat="diffusers", **clip,
        )  # fmt: skip

    chosen = table(config.solver_order)
    if not config.euler_at_final:
        return chosen
    euler = table(1)
    columns = {name: np.append(values[:-1], euler[name][-1]) for name, values in chosen._columns.items()}
    return replace(chosen, columns=columns)


def _without_variance(scheduler: Any, model_output: Tensor, sample: Tensor) -> Tensor:
    """The output without its variance channels."""
    learned = scheduler.config.variance_type is not None and model_output.shape[1] == 2 * sample.shape[1]
    return model_output[:, : sample.shape[1]] if learned else model_output


class _Deterministic(BySigma):
    """A scheduler whose step takes no generator."""

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, return_dict)  # type: ignore[misc]
        out, _ = self._advance(model_output, timestep, sample)
        return output_of(SchedulerOutput, return_dict, prev_sample=out)


class DPMSolverMultistepScheduler(BySigma, diffusers.DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers.DPMSolverMultistepScheduler on `samplers.dpmpp`, `dpm_solver` and `dpmpp_sde`.

    Order 3 is theirs (and the authors' code's), see `samplers.dpmpp`. algorithm_type "sde-dpmsolver" has no table.
    """

    _noise_dtype = torch.float32

    def _unsupported(self) -> str | None:
        if self.config.algorithm_type == "sde-dpmsolver":
            return "algorithm_type 'sde-dpmsolver'"
        return super()._unsupported()

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        # The result has the type of what the network's output is converted to.
        state, result = super()._types(model_output, sample)
        own = "epsilon" if self.config.algorithm_type == "dpmsolver" else "sample"
        return state, model_output.dtype if self.config.prediction_type == own else result

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        kind = self.config.algorithm_type
        if kind == "dpmsolver":
            return dpmpp_table(self, levels, samplers.dpm_solver)
        return dpmpp_table(self, levels, samplers.dpmpp if kind == "dpmsolver++" else samplers.dpmpp_sde)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, generator, variance_noise, return_dict)
        model_output = _without_variance(self, model_output, sample)
        draws = self.config.algorithm_type.startswith("sde")
        out, _ = self._advance(
            model_output, timestep, sample, generator=generator, noise=variance_noise if draws else None, draws=draws
        )
        return output_of(SchedulerOutput, return_dict, prev_sample=out)


class DPMSolverSinglestepScheduler(BySigma, diffusers.DPMSolverSinglestepScheduler):  # type: ignore[misc]
    """diffusers.DPMSolverSinglestepScheduler on `samplers.dpmpp_singlestep` and `dpm_solver_singlestep`.

    Order 3 and "sde-dpmsolver++" have no table.
    """

    def _unsupported(self) -> str | None:
        if self.config.algorithm_type == "sde-dpmsolver++":
            return "algorithm_type 'sde-dpmsolver++' in single steps"
        if self.config.solver_order > 2:
            return "their order 3 in single steps"
        return super()._unsupported()

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        groups: list[int] = []
        for done, order in enumerate(self.order_list[start : len(self.timesteps)]):
            if min(order, done + 1) == 1:
                groups.append(0)
            groups[-1] += 1
        options: dict[str, Any] = {
            "order": self.config.solver_order, "solver_type": self.config.solver_type, "groups": groups,
        }  # fmt: skip
        if self.config.algorithm_type == "dpmsolver":
            return levels.table(samplers.dpm_solver_singlestep, **options)
        return levels.table(samplers.dpmpp_singlestep, clip=None, **options)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        model_output = _without_variance(self, model_output, sample)
        out, _ = self._advance(model_output, timestep, sample)
        return output_of(SchedulerOutput, return_dict, prev_sample=out)


class UniPCMultistepScheduler(_Deterministic, diffusers.UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers.UniPCMultistepScheduler on `samplers.unipc`.

    Put right: "bh1" ends at an image without noise, where diffusers gives NaN. `solver_p` has no table.
    """

    def _unsupported(self) -> str | None:
        if self.config.solver_p is not None:
            return "another scheduler as predictor (solver_p)"
        if self.config.solver_order > 3:
            return f"order {self.config.solver_order}"
        return super()._unsupported()

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        # The corrector goes back to the state that a run began with, and so to its type.
        assert self._run is not None
        assert self._run.first_type is not None
        return super()._types(model_output, sample)[0], self._run.first_type

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return levels.table(
            samplers.unipc,
            order=self.config.solver_order,
            variant=self.config.solver_type,
            predict_x0=self.predict_x0,
            no_corrector_rows=[d + 1 - start for d in self.disable_corrector],
            lower_order_final=self.config.lower_order_final,
            clip=None,
        )


class DEISMultistepScheduler(_Deterministic, diffusers.DEISMultistepScheduler):  # type: ignore[misc]
    """diffusers.DEISMultistepScheduler on `samplers.deis` in log rho. Order above 3 has no table."""

    def _unsupported(self) -> str | None:
        return f"order {self.config.solver_order}" if self.config.solver_order > 3 else super()._unsupported()

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        lower = _lowers_order_at_end(self)
        return levels.table(samplers.deis, order=self.config.solver_order, lower_order_final=lower)


class PNDMScheduler(FusedScheduler, diffusers.PNDMScheduler):  # type: ignore[misc]
    """diffusers.PNDMScheduler on `samplers.plms` and `pndm`.

    Put right: each step leads to the next level of the list, where diffusers steps by T // n, and the middle of a
    Runge-Kutta step is the level that the network is asked at, where theirs is one timestep off for an odd stride.
    A network that predicts v has no table: they combine the raw v of several times. With
    compat="diffusers" their own step runs. A run that starts in the middle of the list takes the rows of its timesteps,
    the order growing from 1, where theirs takes the first ones.
    """

    _inner: Tensor | None = None
    # The timesteps of all rows: `timesteps` may be shortened by hand.
    _listed: Tensor

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """As in diffusers."""
        super().set_timesteps(num_inference_steps, device)
        self._listed = self.timesteps

    def _unsupported(self) -> str | None:
        if self.compat is not None:
            return "the faults of diffusers' PNDM (compat='diffusers')"
        if self.config.prediction_type != "epsilon":
            return f"prediction_type {self.config.prediction_type!r} in PNDM"
        if self.num_inference_steps is None or self.num_inference_steps < (1 if self.config.skip_prk_steps else 4):
            return "so few steps of PNDM"
        return super()._unsupported()

    def _build(self, start: int, key: Any) -> CoefficientTable:
        # Their list of levels, cleanest first.
        timesteps = np.asarray(self._timesteps, dtype=np.int64)[::-1]
        if self.config.skip_prk_steps:
            logs = self._log_alphas_cumprod[timesteps]
            table = Levels.from_logs(logs, "eps", end=self._end).table(samplers.plms)
        else:
            table = self._with_runge_kutta(timesteps, self._end)
        if start:
            table = self._from_row(table, start)
        return with_times(table, self._listed[start:].double().cpu().numpy())

    @property
    def _end(self) -> float:
        return 0.0 if self.config.set_alpha_to_one else float(self._log_alphas_cumprod[0])

    def _from_row(self, table: CoefficientTable, start: int) -> CoefficientTable:
        """The rows from `start` on, none of which reads what an earlier one has kept.

        Where a step's later evaluations come first, each leads to the next timestep of the list by DDIM's rule, and
        stands still where that is the same. Then the order grows from 1 as at any start.
        """
        columns = {name: values[start:].copy() for name, values in table._columns.items()}
        whole = 2 if self.config.skip_prk_steps else min(-(-start // 4) * 4, len(self.prk_timesteps))
        first = max(0, whole - start)
        logs = np.append(self._log_alphas_cumprod[self._listed[start:].cpu().numpy()], self._end)
        alpha, sigma = np.exp(0.5 * logs), np.sqrt(-np.expm1(logs))
        pushed = 0
        for row in range(len(columns["t"])):
            terms = [columns[f"c{age}"] for age in range(4)]
            if row < first:
                gain = alpha[row + 1] / alpha[row]
                for name in ("cb", "c1", "save_base", "bx", "bb", "b0", "push"):
                    columns[name][row] = 0.0
                columns["cx"][row], columns["c0"][row] = gain, sigma[row + 1] - gain * sigma[row]
            elif columns["cx"][row] != 0 and any(term[row] != 0 for term in terms[pushed + 1 :]):
                weights = ADAMS_BASHFORTH[pushed]
                whole_step = sum(term[row] for term in terms)
                for age, term in enumerate(terms):
                    term[row] = whole_step * weights[age] if age < len(weights) else 0.0
            pushed += int(columns["push"][row])
        alphas, sigmas = np.asarray(table.alphas)[start:], np.asarray(table.sigmas)[start:]
        return replace(table, columns=columns, init_scale=1.0, alphas=alphas, sigmas=sigmas)

    def _with_runge_kutta(self, timesteps: Any, end: float) -> CoefficientTable:
        # The middles of the first three steps are levels as well, at their timesteps.
        inner = sorted({int(t) for t in self.prk_timesteps} - {int(t) for t in timesteps})
        every = np.array(sorted({*inner, *(int(t) for t in timesteps)}, reverse=True))
        levels = Levels.from_logs(self._log_alphas_cumprod[every], "eps", end=end)
        shift = 1 if levels.final == "sigma_min" else 0
        times = np.append([-1.0] if shift else [], every[::-1]).astype(np.float64) + shift
        schedule = replace(levels.diffusion.schedule, timesteps=times)
        chosen = [p for p, t in zip(levels.timesteps, every, strict=True) if int(t) not in inner]
        return samplers.pndm(replace(levels.diffusion, schedule=schedule), timesteps=chosen, final=levels.final)

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, return_dict)
        run, row = self._find(timestep)
        state = self._types(model_output, sample)[0]
        # Their inner evaluations of a Runge-Kutta step go on from the state at its start, whatever they are given.
        # Row 2 of one reads the state that row 1 has led to.
        inner = self._inner if run.key is None and row and self._inner_row(run.start + row) == 2 else None
        sample = sample.to(state) if inner is None else inner
        out, _ = run.step(row, sample, model_output)
        self._inner = out.clone() if run.key is None and self._inner_row(run.start + row) == 1 else None
        self.counter += 1
        return output_of(SchedulerOutput, return_dict, prev_sample=out)

    def _inner_row(self, index: int) -> int:
        return index % 4 if index < len(self.prk_timesteps) else 0

    def _find(self, timestep: Any) -> tuple[Run, int]:
        """The run and row of a timestep: the next row where that is its timestep, or else a new run from there."""
        run = self._run if self.counter else None
        if run is not None and run.key is None and run.next < len(run.t):
            index = run.start + run.next
            elsewhere = isinstance(timestep, Tensor) and timestep.device.type != "cpu"
            if elsewhere or float(timestep) == run.t[run.next]:
                return self._begin(index), run.next
        start = place_in(timestep, self._listed)
        if start is None:
            places = (self._listed == timestep).nonzero()
            # A list from its start, or from the first step that has a timestep of its own.
            start = int(places[0 if not self.counter and places[0] == 0 else -1]) if len(places) else None
        if start is not None:
            self._run = None
            return self._begin(start), 0
        key = int(timestep)
        single = self._runs.get(key)
        if single is None:
            single = self._runs[key] = Run(self._single(key), 0, key)
        self._run = single
        return single, 0

    def _single(self, timestep: int) -> CoefficientTable:
        """A step from a timestep that is not in the list, of T // n as theirs."""
        assert self.num_inference_steps is not None
        before = timestep - int(self.config.num_train_timesteps) // self.num_inference_steps
        end = float(self._log_alphas_cumprod[before]) if before >= 0 else self._end
        level = float(self._log_alphas_cumprod[timestep])
        return with_times(Levels.from_logs([level], "eps", end=min(end, 0.0)).table(samplers.ipndm), [timestep])
