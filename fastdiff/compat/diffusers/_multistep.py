"""Drop-ins that integrate from level to level: PNDM, DPM-Solver, UniPC and DEIS."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.diffusers._base import PREDICTIONS, FusedScheduler, Generators
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.levels import (
    Ladder,
    ladder,
    ladder_of_sigmas,
    with_times,
)
from fastdiff.process.table import CoefficientTable

# Below so many steps the last ones are of lower order.
_FEW_STEPS = 15


def _output(out: Tensor, return_dict: bool) -> Any:
    return output_of(SchedulerOutput, prev_sample=out) if return_dict else (out,)


class _BySigma(FusedScheduler):
    """A scheduler with a list of sigmas and a step index."""

    def _ladder(self, start: int) -> Ladder:
        return ladder_of_sigmas(self._sigmas()[start:].double().cpu().numpy(), PREDICTIONS[self.config.prediction_type])

    def _timed(self, table: CoefficientTable, start: int) -> CoefficientTable:
        return with_times(table, self.timesteps[start:].double().cpu().numpy())

    def _few(self) -> bool:
        return bool(self.config.lower_order_final) and len(self.timesteps) < _FEW_STEPS

    def _split(self, model_output: Tensor, sample: Tensor) -> Tensor:
        """The output without its variance channels."""
        return model_output[:, : sample.shape[1]] if model_output.shape[1] == 2 * sample.shape[1] else model_output


class DPMSolverMultistepScheduler(_BySigma, diffusers.DPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers.DPMSolverMultistepScheduler on `samplers.dpmpp`, `dpm_solver` and `dpmpp_sde`.

    Order 3 is theirs (and the authors' code's), see `samplers.dpmpp`. algorithm_type "sde-dpmsolver" has no table.
    """

    def _unsupported(self) -> str | None:
        if self.config.algorithm_type == "sde-dpmsolver":
            return "algorithm_type 'sde-dpmsolver'"
        return super()._unsupported()

    def _build(self, start: int, key: Any) -> CoefficientTable:
        config, way = self.config, self._ladder(start)

        def table(order: int) -> CoefficientTable:
            options: dict[str, Any] = {
                "timesteps": way.timesteps, "final": way.final, "order": order, "solver_type": config.solver_type,
                "lower_order_final": self._few(), "compat": "diffusers",
            }  # fmt: skip
            if config.algorithm_type == "dpmsolver":
                return samplers.dpm_solver(way.diffusion, **options)
            build = samplers.dpmpp if config.algorithm_type == "dpmsolver++" else samplers.dpmpp_sde
            return build(way.diffusion, clip=None, **options)

        whole = table(config.solver_order)
        if config.euler_at_final:
            last = table(1)
            columns = {name: np.append(values[:-1], last[name][-1]) for name, values in whole._columns.items()}
            whole = replace(whole, columns=columns)
        return self._timed(whole, start)

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
        if self.num_inference_steps is None or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, generator, variance_noise, return_dict)
        if self.config.variance_type is not None:
            model_output = self._split(model_output, sample)
        draws = self.config.algorithm_type.startswith("sde")
        out, _ = self._advance(
            model_output, timestep, sample, generator=generator, noise=variance_noise if draws else None, draws=draws
        )
        return _output(out, return_dict)


class DPMSolverSinglestepScheduler(_BySigma, diffusers.DPMSolverSinglestepScheduler):  # type: ignore[misc]
    """diffusers.DPMSolverSinglestepScheduler on `samplers.dpmpp_singlestep` and `dpm_solver_singlestep`.

    Order 3 and "sde-dpmsolver++" have no table.
    """

    def _unsupported(self) -> str | None:
        if self.config.algorithm_type == "sde-dpmsolver++":
            return "algorithm_type 'sde-dpmsolver++' in single steps"
        if self.config.solver_order > 2:
            return "their order 3 in single steps"
        return super()._unsupported()

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way, groups = self._ladder(start), []
        for done, order in enumerate(self.order_list[start : len(self.timesteps)]):
            if min(order, done + 1) == 1:
                groups.append(0)
            groups[-1] += 1
        options: dict[str, Any] = {
            "timesteps": way.timesteps, "final": way.final, "order": self.config.solver_order,
            "solver_type": self.config.solver_type, "groups": groups,
        }  # fmt: skip
        if self.config.algorithm_type == "dpmsolver":
            return self._timed(samplers.dpm_solver_singlestep(way.diffusion, **options), start)
        return self._timed(samplers.dpmpp_singlestep(way.diffusion, clip=None, **options), start)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        if self.config.variance_type is not None:
            model_output = self._split(model_output, sample)
        out, _ = self._advance(model_output, timestep, sample)
        return _output(out, return_dict)


class UniPCMultistepScheduler(_BySigma, diffusers.UniPCMultistepScheduler):  # type: ignore[misc]
    """diffusers.UniPCMultistepScheduler on `samplers.unipc`.

    Put right: "bh1" ends at an image without noise, where diffusers gives NaN. `solver_p` has no table.
    """

    def _unsupported(self) -> str | None:
        if self.config.solver_p is not None:
            return "another scheduler as predictor (solver_p)"
        if self.config.solver_order > 3:
            return f"order {self.config.solver_order}"
        return super()._unsupported()

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way, config = self._ladder(start), self.config
        table = samplers.unipc(
            way.diffusion,
            timesteps=way.timesteps,
            final=way.final,
            order=config.solver_order,
            variant=config.solver_type,
            predict_x0=self.predict_x0,
            no_corrector_rows=[d + 1 - start for d in self.disable_corrector],
            lower_order_final=config.lower_order_final,
            clip=None,
        )
        return self._timed(table, start)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, return_dict)
        out, _ = self._advance(model_output, timestep, sample)
        return _output(out, return_dict)


class DEISMultistepScheduler(_BySigma, diffusers.DEISMultistepScheduler):  # type: ignore[misc]
    """diffusers.DEISMultistepScheduler on `samplers.deis` in log rho. Order above 3 has no table."""

    def _unsupported(self) -> str | None:
        return f"order {self.config.solver_order}" if self.config.solver_order > 3 else super()._unsupported()

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way = self._ladder(start)
        table = samplers.deis(
            way.diffusion, timesteps=way.timesteps, final=way.final, order=self.config.solver_order,
            lower_order_final=self._few(),
        )  # fmt: skip
        return self._timed(table, start)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, return_dict)
        out, _ = self._advance(model_output, timestep, sample)
        return _output(out, return_dict)


class PNDMScheduler(FusedScheduler, diffusers.PNDMScheduler):  # type: ignore[misc]
    """diffusers.PNDMScheduler on `samplers.plms` and `pndm`.

    Put right: each step leads to the next level of the list, where diffusers steps by T // n, and the middle of a
    Runge-Kutta step is the level that the network is asked at, where theirs is one timestep off for an odd stride.
    A network that predicts v has no table: they combine the raw v of several times. With
    compat="diffusers" their own step runs.
    """

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
        levels = np.asarray(self._timesteps, dtype=np.int64)[::-1]
        log_abar = self._log_alphas_cumprod
        end = 0.0 if self.config.set_alpha_to_one else float(log_abar[0])
        if self.config.skip_prk_steps:
            way = ladder(log_abar[levels], "eps", end=end)
            table = samplers.plms(way.diffusion, timesteps=way.timesteps, final=way.final)
        else:
            table = self._with_runge_kutta(levels, end)
        return with_times(table, self.timesteps.double().cpu().numpy())

    def _with_runge_kutta(self, levels: Any, end: float) -> CoefficientTable:
        # The middles of the first three steps are levels of the ladder as well, at their timesteps.
        inner = sorted({int(t) for t in self.prk_timesteps} - {int(t) for t in levels})
        every = np.array(sorted({*inner, *(int(t) for t in levels)}, reverse=True))
        way = ladder(self._log_alphas_cumprod[every], "eps", end=end)
        shift = 1 if way.final == "sigma_min" else 0
        times = np.append([-1.0] if shift else [], every[::-1]).astype(np.float64) + shift
        schedule = replace(way.diffusion.schedule, timesteps=times)
        chosen = [p for p, t in zip(way.timesteps, every, strict=True) if int(t) not in inner]
        return samplers.pndm(replace(way.diffusion, schedule=schedule), timesteps=chosen, final=way.final)

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, return_dict)
        run = self._begin(self.counter)
        out, _ = run.step(self.counter - run.start, sample, model_output)
        self.counter += 1
        return _output(out, return_dict)
