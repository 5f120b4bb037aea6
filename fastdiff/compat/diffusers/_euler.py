"""Drop-ins whose state is x / alpha: Euler, ancestral Euler, Heun and LMS."""

from __future__ import annotations

import warnings
from dataclasses import replace
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
from fastdiff.compat.diffusers._base import BySigma, Generators, GivesVelocity, peer_complains
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.process.table import CoefficientTable


class _Exploding(BySigma):
    """A scheduler of x / alpha, whose model input is scaled."""

    is_scale_input_called: bool

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor) -> Tensor:
        """The network's input, sample / sqrt(sigma^2 + 1)."""
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        self._refresh()
        scales = self._runs.get("scales")
        if scales is None:
            scales = (1 / np.sqrt(self._sigmas().double().cpu().numpy() ** 2 + 1)).tolist()
            self._runs["scales"] = scales
        self.is_scale_input_called = True
        assert self._step_index is not None
        return sample * scales[self._step_index]  # type: ignore[no-any-return]

    def _build(self, start: int, key: Any) -> CoefficientTable:
        return variance_exploding(super()._build(start, key))


class _Upcast(_Exploding):
    """A scheduler that computes in float32 at least, and whose result has the type of the network's output."""

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        both = torch.promote_types(sample.dtype, model_output.dtype)
        return torch.promote_types(both, torch.float32), model_output.dtype


class EulerDiscreteScheduler(GivesVelocity, _Upcast, diffusers.EulerDiscreteScheduler):  # type: ignore[misc]
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
        if s_churn > 0 or peer_complains(self, timestep) or self._peer_steps(sample):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        return output_of(EulerDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class EulerAncestralDiscreteScheduler(_Upcast, diffusers.EulerAncestralDiscreteScheduler):  # type: ignore[misc]
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
        if peer_complains(self, timestep) or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, generator, return_dict)
        out, pred = self._advance(model_output, timestep, sample, generator=generator, draws=True, prediction=True)
        return output_of(EulerAncestralDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class HeunDiscreteScheduler(_Exploding, diffusers.HeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers.HeunDiscreteScheduler on `samplers.heun`: two entries of `timesteps` per level but the first."""

    def _sigmas_from(self, start: int) -> Tensor:
        # Their list has every level but the first and the last twice.
        sigmas = self._sigmas()[: len(self.timesteps) + 1]
        return torch.cat([sigmas[start:-1:2], sigmas[-1:]])

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """As in diffusers."""
        # Every timestep but the first stands there twice, and a step begins with the second.
        return super(BySigma, self).index_for_timestep(timestep, schedule_timesteps)  # type: ignore[no-any-return]

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        return _from_the_start(levels.table(samplers.heun, clip=self._clip))

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if not isinstance(sample, Tensor) or self._peer_steps(sample) or self._is_between(timestep):
            return super().step(model_output, timestep, sample, return_dict)
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        # `state_in_first_order` reads it: a step is half done, and as in theirs also where the last one ends clean.
        run = self._run
        assert run is not None
        self.dt = run.t[run.next - 1] if run.next % 2 else None
        return output_of(HeunDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)

    def _is_between(self, timestep: float | Tensor) -> bool:
        """Whether a run begins or began at the second half of a step, which theirs takes for a first one."""
        if self._run is not None:
            return False
        if self._step_index is None:
            self._init_step_index(timestep)
        assert self._step_index is not None
        return self._step_index % 2 == 1 or not self.state_in_first_order


class LMSDiscreteScheduler(_Exploding, diffusers.LMSDiscreteScheduler):  # type: ignore[misc]
    """diffusers.LMSDiscreteScheduler on `samplers.lms`, whose integrals are exact where theirs are numerical.

    Put right: a run that starts in the middle has the order of the values at hand, where theirs, and
    `compat="diffusers"`, drops the weights of the others. Orders above 4 have no table.
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
        if order > 4 or self._peer_steps(sample) or self._lacks_weights(timestep):
            return super().step(model_output, timestep, sample, order, return_dict)
        if not self.is_scale_input_called:
            warnings.warn("scale_model_input must be called before step, and was not", stacklevel=2)
        # Its predictions are eps, also of a network that predicts the image.
        out, eps = self._advance(model_output, timestep, sample, key=order, prediction=True)
        assert eps is not None
        assert self._step_index is not None
        sigma = float(self.sigmas[self._step_index - 1])
        if self.config.prediction_type == "sample":
            pred = model_output
        elif self.config.prediction_type == "v_prediction":
            # x - sigma eps would lose its digits at a large sigma.
            scale = 1 / (sigma**2 + 1)
            pred = torch.add(sample * scale, model_output, alpha=-sigma * scale**0.5)
        else:
            pred = torch.sub(sample, eps, alpha=sigma)
        return output_of(LMSDiscreteSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)

    def _lacks_weights(self, timestep: float | Tensor) -> bool:
        """Whether a run begins or began in the middle, where compat is "diffusers"."""
        if self.compat is None:
            return False
        if self._step_index is None:
            self._init_step_index(timestep)
        return self._run is None and self._step_index != 0


def _from_the_start(table: CoefficientTable) -> CoefficientTable:
    """Heun's table, whose second rows start from the state that the first one was given, not from its result.

    What a caller does to the state between the two then reaches the second slope alone, (x / alpha - pred) / rho, as in
    diffusers. Of the second row's c x the slope's part is -c0 x / alpha. The rest was the first row's result
    a base + b p1, and becomes that.
    """
    columns = {name: np.array(values) for name, values in table.columns.items()}
    alphas = np.asarray(table.alphas)
    for first in np.flatnonzero(columns["push"]):
        second = first + 1
        slope = -columns["c0"][second] / alphas[second]
        gain = columns["cx"][second] - slope
        columns["save_base"][first] = columns["bx"][first] = 1.0
        columns["cb"][second] = gain * columns["cx"][first]
        columns["c1"][second] += gain * columns["c0"][first]
        columns["cx"][second] = slope
    return replace(table, columns=columns)
