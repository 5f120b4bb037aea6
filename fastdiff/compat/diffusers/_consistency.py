"""Drop-ins for consistency models, whose every step is a prediction and, but for the last, fresh noise: LCM and TCD."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_lcm import LCMSchedulerOutput
from diffusers.schedulers.scheduling_tcd import TCDSchedulerOutput
from torch import Tensor

from fastdiff.compat.diffusers._base import PREDICTIONS, FusedScheduler, Generators, GivesVelocity, place_in
from fastdiff.compat.diffusers._run import Run, output_of
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable

# Of their consistency models; the configuration has no word for it.
_SIGMA_DATA = 0.5


class _TwoRows(GivesVelocity, FusedScheduler):
    """A scheduler whose step is two rows: what the network predicts, which is given out as well, and its noising.

    No row reads what another has kept, so that a run may begin anywhere.
    """

    def _unsupported(self) -> str | None:
        if self.config.prediction_type == "epsilon" and np.isneginf(self._log_alphas_cumprod).any():
            return "a level without signal, whose noise is predicted"
        return super()._unsupported()

    def _read(self, alpha: Array, sigma: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        """The weights of x and of the network's output in x_0, and those in eps."""
        one, none = np.ones_like(alpha), np.zeros_like(alpha)
        kind = PREDICTIONS[self.config.prediction_type]
        if kind == "eps":
            return (1 / alpha, -sigma / alpha), (none, one)
        if kind == "v":
            return (alpha, -sigma), (sigma, alpha)
        return (none, one), (1 / sigma, -alpha / sigma)

    def _predicting(self, key: Any) -> tuple[dict[str, Array], Array, Array]:
        """[N] each: columns of the rows that predict, and the gain and the noise of those after them."""
        raise NotImplementedError

    def _signal_noise(self, timesteps: Any) -> tuple[Array, Array]:
        logs = self._log_alphas_cumprod[np.asarray(timesteps, dtype=np.int64)]
        return np.exp(0.5 * logs), np.sqrt(-np.expm1(logs))

    def _table(self, key: Any) -> CoefficientTable:
        predicting, gain, noise = self._predicting(key)
        predicts = np.arange(2 * gain.size) % 2 == 0
        columns = {name: np.where(predicts, np.repeat(values, 2), 0.0) for name, values in predicting.items()}
        columns["cx"] = np.where(predicts, columns["cx"], np.repeat(gain, 2))
        columns["s"] = np.where(predicts, 0.0, np.repeat(noise, 2))
        columns["t"] = np.repeat(self.timesteps.double().cpu().numpy(), 2)
        columns["evaluate"] = predicts.astype(np.float64)
        clip = None if self._bound is None else np.where(predicts, self._bound, np.inf)
        return CoefficientTable(columns | ({} if clip is None else {"clip": clip}), "consistency")

    @property
    def _bound(self) -> float | None:
        return None

    def _consistent(
        self, model_output: Tensor, timestep: Any, sample: Tensor, generator: Generators, key: Any, noised: bool
    ) -> tuple[Tensor, Tensor] | None:
        """The next state and the prediction; None where the timestep is not that of the list."""
        if self.num_inference_steps is None:
            return None
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        index = self._step_index
        assert index is not None
        if index >= len(self.timesteps):
            return None
        run = self._runs.get(key)
        if run is None:
            run = self._runs[key] = Run(self._table(key), 0, key)
        if place_in(timestep, self.timesteps) != index and int(timestep) != run.t[2 * index]:
            return None
        if sample.dtype != model_output.dtype:
            sample = sample.to(torch.promote_types(sample.dtype, model_output.dtype))
        predicted, _ = run.step(2 * index, sample, model_output)
        out = predicted
        if noised and index != self.num_inference_steps - 1:
            noise, seed = self._noise(predicted, generator, None, run.noisy[2 * index + 1])
            out, _ = run.step(2 * index + 1, predicted, None, noise=noise, seed=seed, sample_ids=self.sample_ids)
        self._step_index = index + 1
        return out, predicted


class LCMScheduler(_TwoRows, diffusers.LCMScheduler):  # type: ignore[misc]
    """diffusers.LCMScheduler: c_skip x + c_out x_0 in one row, and its noising in another."""

    @property
    def _bound(self) -> float | None:
        return self._clip

    def _predicting(self, key: Any) -> tuple[dict[str, Array], Array, Array]:
        times = self.timesteps.cpu().numpy()
        alpha, sigma = self._signal_noise(times)
        (px, pm), _ = self._read(alpha, sigma)
        scaled = times * float(self.config.timestep_scaling)
        skip = _SIGMA_DATA**2 / (scaled**2 + _SIGMA_DATA**2)
        gain, noise = self._signal_noise(np.append(times[1:], times[-1:]))
        return {"px": px, "pm": pm, "cx": skip, "c0": scaled / np.hypot(scaled, _SIGMA_DATA)}, gain, noise

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        found = None
        if not self._peer_steps(sample):
            found = self._consistent(model_output, timestep, sample, generator, None, True)
        if found is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        return output_of(LCMSchedulerOutput, return_dict, prev_sample=found[0], denoised=found[1])


class TCDScheduler(_TwoRows, diffusers.TCDScheduler):  # type: ignore[misc]
    """diffusers.TCDScheduler: DDIM's step to a level below the next one in a row, and its noising in another."""

    def _predicting(self, key: Any) -> tuple[dict[str, Array], Array, Array]:
        alpha, sigma = self._signal_noise(self.timesteps.cpu().numpy())
        after = torch.cat([self.timesteps[1:].cpu(), torch.zeros(1, dtype=torch.int64)])
        # Rounded as theirs, where a whole number may become the one below it.
        below = torch.floor((1 - key) * after).long()
        alpha_s, sigma_s = self._signal_noise(below)
        (px, pm), (ex, em) = self._read(alpha, sigma)
        # The rest is the two predictions weighed, so that neither is read from a difference.
        columns = {"px": px, "pm": pm, "cx": alpha_s * px + sigma_s * ex, "cm": alpha_s * pm + sigma_s * em}
        logs = self._log_alphas_cumprod
        ratio = np.minimum(logs[after.numpy()] - logs[below.numpy()], 0.0)
        return columns, np.exp(0.5 * ratio), np.sqrt(-np.expm1(ratio))

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.3,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        found = None
        if not self._peer_steps(sample) and 0 <= eta <= 1:
            found = self._consistent(model_output, timestep, sample, generator, float(eta), eta > 0)
        if found is None:
            return super().step(model_output, timestep, sample, eta, generator, return_dict)
        return output_of(TCDSchedulerOutput, return_dict, prev_sample=found[0], pred_noised_sample=found[1])
