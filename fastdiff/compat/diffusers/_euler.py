"""Drop-ins whose state is x / alpha: Euler, ancestral Euler, Heun and LMS."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteSchedulerOutput
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.diffusers._base import BySigma, Generators
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.process.table import CoefficientTable


class _Exploding(BySigma):
    """A scheduler of x / alpha, whose model input is scaled."""

    is_scale_input_called: bool
    _scales: list[float] | None = None

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)
        self._scales = None

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The network's input, sample / sqrt(sigma^2 + 1)."""
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        if self._scales is None:
            self._scales = (1 / np.sqrt(self._sigmas().double().cpu().numpy() ** 2 + 1)).tolist()
        self.is_scale_input_called = True
        assert self._step_index is not None
        return sample * self._scales[self._step_index]

    def _build(self, start: int, key: Any) -> CoefficientTable:
        return variance_exploding(super()._build(start, key))

    def _peer_complains(self, timestep: Any) -> bool:
        """Whether diffusers would warn of an input that was not scaled, or refuse the timestep."""
        return not self.is_scale_input_called or isinstance(timestep, int)


class EulerDiscreteScheduler(_Exploding, diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers.EulerDiscreteScheduler on `samplers.euler`. A step with s_churn > 0 is their own."""

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return levels.table(samplers.euler, clip=None)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = float("inf"),
        s_noise: float = 1.0,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        # Their own step also says what is wrong where the input was not scaled or the timestep is an index.
        if s_churn > 0 or self._peer_complains(timestep) or self._peer_steps(model_output, sample):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        return output_of(EulerDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class EulerAncestralDiscreteScheduler(_Exploding, diffusers.EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """diffusers.EulerAncestralDiscreteScheduler on `samplers.euler_ancestral`.

    It takes networks that predict x0 as well.
    """

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return levels.table(samplers.euler_ancestral, clip=None)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if self._peer_complains(timestep) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        out, pred = self._advance(model_output, timestep, sample, generator=generator, draws=True, prediction=True)
        return output_of(EulerAncestralDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class HeunDiscreteScheduler(_Exploding, diffusers.HeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers.HeunDiscreteScheduler on `samplers.heun`: two entries of `timesteps` per level but the first."""

    def _sigmas_from(self, start: int) -> Tensor:
        # Their list has every level but the first and the last twice.
        sigmas = self._sigmas()
        return torch.cat([sigmas[start:-1:2], sigmas[-1:]])

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return levels.table(samplers.heun, clip=self._clip)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if not isinstance(sample, Tensor) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, return_dict)
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        # `state_in_first_order` reads it: a step is half done.
        run = self._run
        assert run is not None
        self.dt = run.t[run.next - 1] if run.pushes[run.next - 1] else None
        return output_of(HeunDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class LMSDiscreteScheduler(_Exploding, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """diffusers.LMSDiscreteScheduler on `samplers.lms`, whose integrals are exact where theirs are numerical.

    Put right: a run that starts in the middle has the order of the values at hand, where theirs drops the weights of
    the others. Orders above 4 have no table.
    """

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return levels.table(samplers.lms, order=key)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if order > 4 or self._peer_complains(timestep) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, order, return_dict)
        out, eps = self._advance(model_output, timestep, sample, key=order, prediction=True)
        assert eps is not None
        assert self._step_index is not None
        pred = torch.sub(sample, eps, alpha=float(self.sigmas[self._step_index - 1]))
        return output_of(LMSDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)
