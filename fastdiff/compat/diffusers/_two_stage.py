"""Drop-ins of two network evaluations a step, the second in its middle: DPM2, and DPM2 with ancestral noise."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.schedulers.scheduling_k_dpm_2_ancestral_discrete import KDPM2AncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_k_dpm_2_discrete import KDPM2DiscreteSchedulerOutput
from torch import Tensor

from fastdiff.compat.diffusers._base import PREDICTIONS, BySigma, Generators, place_in
from fastdiff.compat.diffusers._run import output_of
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable


class Halves(BySigma):
    """A scheduler of x / alpha whose `timesteps` hold each step's start and its middle; the last step is Euler's.

    With the slope d = (x - pred) / rho, the first row of a step leads to the middle, x_m = x + (rho_m - rho) d, and the
    second from where the step began, x' = x + (rho_down - rho) d_m + rho_up z.
    """

    sample: Tensor | None
    sigmas_interpol: Tensor

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """As in diffusers; of several equal timesteps the one that is given, or the first that begins a step."""
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        if self.compat is None:
            place = place_in(timestep, times)
            if place is not None:
                return place
            begins = (times[::2] == timestep).nonzero()
            if len(begins):
                return 2 * int(begins[0])
        return super(BySigma, self).index_for_timestep(timestep, schedule_timesteps)  # type: ignore[misc, no-any-return]

    def _levels_of_steps(self) -> tuple[Array, Array, Array, Array]:
        """[N] each: rho where the steps begin, in their middle and where they lead to, and the noise then added."""
        raise NotImplementedError

    def _build(self, start: int, key: Any) -> CoefficientTable:
        begin, middle, down, up = self._levels_of_steps()
        # Start and middle by turns; the last step has no middle.
        rho = np.stack([begin, middle], axis=1).ravel()[:-1]
        length = np.stack([np.append(middle[:-1], down[-1]), down], axis=1).ravel()[:-1] - np.repeat(begin, 2)[:-1]
        second = np.arange(rho.size) % 2 == 1
        first = ~second
        first[-1] = False
        scale = 1 / np.sqrt(rho**2 + 1)
        kind = PREDICTIONS[self.config.prediction_type]
        if kind == "eps":
            px, pm, along_x, along_m = np.ones_like(rho), -rho, np.zeros_like(rho), np.ones_like(rho)
        elif kind == "v":
            px, pm, along_x, along_m = scale**2, -rho * scale, rho * scale**2, scale
        else:
            px, pm, along_x, along_m = np.zeros_like(rho), np.ones_like(rho), 1 / rho, -1 / rho
        columns = {
            "t": self.timesteps.double().cpu().numpy(), "px": px, "pm": pm,
            "cx": np.where(second, 0.0, 1.0) + length * along_x, "cm": length * along_m, "cb": second,
            "s": np.where(second, np.repeat(up, 2)[:-1], 0.0), "save_base": first, "bx": first,
        }  # fmt: skip
        return CoefficientTable({name: np.asarray(x, dtype=np.float64)[start:] for name, x in columns.items()}, "dpm2")

    def _is_between(self, timestep: Any) -> bool:
        """Whether a run begins or began at the second half of a step."""
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        assert self._step_index is not None
        return self._run is None and (self._step_index % 2 == 1 or self.sample is not None)

    def _half(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Generators
    ) -> tuple[Tensor, Tensor | None]:
        """One row, after `_is_between`; noise is drawn in the second half of a step alone."""
        assert self._step_index is not None
        is_second = self._step_index % 2 == 1
        out, pred = self._advance(model_output, timestep, sample, generator=generator, draws=is_second, prediction=True)
        # `state_in_first_order` reads it.
        self.sample = None if is_second else sample
        return out, pred


class KDPM2DiscreteScheduler(Halves, diffusers.KDPM2DiscreteScheduler):  # type: ignore[misc]
    """diffusers.KDPM2DiscreteScheduler, a row an evaluation. It takes networks that predict x0 as well."""

    _lists = ("alphas_cumprod", "timesteps", "sigmas", "sigmas_interpol", "log_sigmas")

    def _levels_of_steps(self) -> tuple[Array, Array, Array, Array]:
        begin, after = _ends(self._sigmas())
        if self._levels is None:
            # Levels set by hand keep the middles that there are.
            middle = self.sigmas_interpol.double().cpu().numpy()[1 : 2 * begin.size : 2]
        else:
            middle = np.sqrt(begin * after)
        return begin, middle, after, np.zeros_like(begin)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self._peer_steps(sample) or self._is_between(timestep):
            return super().step(model_output, timestep, sample, return_dict)
        out, pred = self._half(model_output, timestep, sample, None)
        return output_of(KDPM2DiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class _Finite:
    """Puts right the middles that theirs makes NaN, which for this noise are the levels after them.

    Their rho_down^2 = rho'^2 - rho_up^2 is 0 or less by rounding where rho falls by far, so that they take log 0.
    """

    compat: str | None
    timesteps: Tensor
    sigmas: Tensor
    sigmas_interpol: Tensor

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers."""
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        if self.compat is None and bool(self.timesteps.isnan().any()):
            end = len(self.timesteps) - 1
            times, middles = self.timesteps[1::2], self.sigmas_interpol[:end:2]
            times.copy_(times.where(~times.isnan(), self.timesteps[2::2]))
            middles.copy_(middles.where(~middles.isnan(), self.sigmas[1:end:2].to(middles.device)))


class KDPM2AncestralDiscreteScheduler(Halves, _Finite, diffusers.KDPM2AncestralDiscreteScheduler):  # type: ignore[misc]
    """diffusers.KDPM2AncestralDiscreteScheduler, a row an evaluation.

    It takes networks that predict x0 as well, and few steps of schedules that end without signal, whose middles are NaN
    in theirs and with `compat="diffusers"`.
    """

    _lists = (
        "alphas_cumprod", "timesteps", "sigmas", "sigmas_interpol", "sigmas_up", "sigmas_down", "log_sigmas"
    )  # fmt: skip
    sigmas_up: Tensor
    sigmas_down: Tensor

    def _unsupported(self) -> str | None:
        return "timesteps that are NaN" if bool(self.timesteps.isnan().any()) else super()._unsupported()

    def _levels_of_steps(self) -> tuple[Array, Array, Array, Array]:
        begin, after = _ends(self._sigmas())
        if self._levels is None:
            # Levels set by hand keep the others that there are.
            middle, down, up = (
                x.double().cpu().numpy()[: 2 * begin.size : 2]
                for x in (self.sigmas_interpol, self.sigmas_down, self.sigmas_up)
            )
            return begin, middle, down, up
        ratio = after / begin
        down, up = after * ratio, after * np.sqrt((1 - ratio) * (1 + ratio))
        return begin, np.sqrt(begin * down), down, up

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if self._peer_steps(sample) or self._is_between(timestep):
            return super().step(model_output, timestep, sample, generator, return_dict)
        out, pred = self._half(model_output, timestep, sample, generator)
        return output_of(KDPM2AncestralDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


def _ends(sigmas: Tensor) -> tuple[Array, Array]:
    """[N] each, the levels between which the steps lead, of a list that has all but the first and the end twice."""
    levels = sigmas.double().cpu().numpy()
    begin = levels[:-2:2]
    return begin, levels[1:-1:2]
