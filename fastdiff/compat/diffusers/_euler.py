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
from fastdiff.compat.diffusers._base import PREDICTIONS, FusedScheduler, Generators
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.levels import (
    Ladder,
    ladder_of_sigmas,
    variance_exploding,
    with_times,
)
from fastdiff.process.table import CoefficientTable


class _Exploding(FusedScheduler):
    """A scheduler of x / alpha with a list of sigmas, a step index and a scaled model input."""

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

    def _ladder(self, sigmas: Tensor) -> Ladder:
        return ladder_of_sigmas(sigmas.double().cpu().numpy(), PREDICTIONS[self.config.prediction_type])

    def _timed(self, table: CoefficientTable, start: int) -> CoefficientTable:
        return with_times(variance_exploding(table), self.timesteps[start:].double().cpu().numpy())


class EulerDiscreteScheduler(_Exploding, diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers.EulerDiscreteScheduler on `samplers.euler`. A step with s_churn > 0 is their own."""

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way = self._ladder(self._sigmas()[start:])
        table = samplers.euler(way.diffusion, timesteps=way.timesteps, final=way.final, clip=None)
        return self._timed(table, start)

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
        if s_churn > 0 or _their_complaint(self, timestep) or self._peer_steps(model_output, sample):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        if not return_dict:
            return out, pred
        return output_of(EulerDiscreteSchedulerOutput, prev_sample=out, pred_original_sample=pred)


class EulerAncestralDiscreteScheduler(_Exploding, diffusers.EulerAncestralDiscreteScheduler):  # type: ignore[misc]
    """diffusers.EulerAncestralDiscreteScheduler on `samplers.euler_ancestral`.

    It takes networks that predict x0 as well.
    """

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way = self._ladder(self._sigmas()[start:])
        table = samplers.euler_ancestral(way.diffusion, timesteps=way.timesteps, final=way.final, clip=None)
        return self._timed(table, start)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if _their_complaint(self, timestep) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        if self._step_index is None:
            self._init_step_index(timestep)
        index = self._step_index
        assert index is not None
        run = self._begin(index)
        row = index - run.start
        noise, seed = self._noise(model_output, generator, None, run.noisy[row])
        out, pred = run.step(
            row, sample, model_output, noise=noise, seed=seed, sample_ids=self.sample_ids, prediction=True
        )
        self._step_index = index + 1
        out = out.to(model_output.dtype)
        if not return_dict:
            return out, pred
        return output_of(EulerAncestralDiscreteSchedulerOutput, prev_sample=out, pred_original_sample=pred)


class HeunDiscreteScheduler(_Exploding, diffusers.HeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers.HeunDiscreteScheduler on `samplers.heun`: two entries of `timesteps` per level but the first."""

    def _build(self, start: int, key: Any) -> CoefficientTable:
        # Their list has every level but the first and the last twice.
        sigmas = self._sigmas()
        way = self._ladder(torch.cat([sigmas[start:-1:2], sigmas[-1:]]))
        clip = self.config.clip_sample_range if self.config.clip_sample else None
        table = samplers.heun(way.diffusion, timesteps=way.timesteps, final=way.final, clip=clip)
        return self._timed(table, start)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if not isinstance(sample, Tensor) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, return_dict)
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        # `state_in_first_order` reads it: a step is half done.
        run = self._run
        assert run is not None
        self.dt = run.t[run.next - 1] if run.pushes[run.next - 1] else None
        if not return_dict:
            return out, pred
        return output_of(HeunDiscreteSchedulerOutput, prev_sample=out, pred_original_sample=pred)


class LMSDiscreteScheduler(_Exploding, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """diffusers.LMSDiscreteScheduler on `samplers.lms`, whose integrals are exact where theirs are numerical.

    Put right: a run that starts in the middle has the order of the values at hand, where theirs drops the weights of
    the others. Orders above 4 have no table.
    """

    def _build(self, start: int, key: Any) -> CoefficientTable:
        way = self._ladder(self._sigmas()[start:])
        table = samplers.lms(way.diffusion, timesteps=way.timesteps, final=way.final, order=key)
        return self._timed(table, start)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        order: int = 4,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if order > 4 or _their_complaint(self, timestep) or self._peer_steps(model_output, sample):
            return super().step(model_output, timestep, sample, order, return_dict)
        out, eps = self._advance(model_output, timestep, sample, key=order, prediction=True)
        assert eps is not None
        assert self._step_index is not None
        pred = torch.sub(sample, eps, alpha=float(self.sigmas[self._step_index - 1]))
        if not return_dict:
            return out, pred
        return output_of(LMSDiscreteSchedulerOutput, prev_sample=out, pred_original_sample=pred)


def _their_complaint(scheduler: Any, timestep: Any) -> bool:
    """Whether diffusers would warn of an input that was not scaled, or refuse the timestep."""
    return not scheduler.is_scale_input_called or isinstance(timestep, int)
