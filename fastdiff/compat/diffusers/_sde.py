"""The drop-in of DPM-Solver++ on the reverse SDE, whose noise is the increments of torchsde's Brownian path."""

from __future__ import annotations

from typing import Any

import diffusers
import numpy as np
from diffusers.utils import is_torchsde_available
from torch import Tensor

from fastdiff.compat.diffusers._base import PREDICTIONS
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.diffusers._two_stage import Halves
from fastdiff.process.table import CoefficientTable

if is_torchsde_available():
    # Without it diffusers' class refuses to be made, and names the package.
    from diffusers.schedulers.scheduling_dpmsolver_sde import BrownianTreeNoiseSampler, DPMSolverSDESchedulerOutput


class DPMSolverSDEScheduler(Halves, diffusers.DPMSolverSDEScheduler):  # type: ignore[misc]
    """diffusers.DPMSolverSDEScheduler, a row an evaluation. It takes networks that predict x0 as well.

    As there, the noise is that of `noise_sampler_seed`, one number or one per sample, and needs torchsde: the
    increments of one path over the first half of a step and over the whole, in the time sigma.
    """

    noise_sampler: Any
    noise_sampler_seed: Any
    mid_point_sigma: Tensor | None

    def _build(self, start: int, key: Any) -> CoefficientTable:
        levels = self._sigmas().double().cpu().numpy()
        # The list has all levels but the first and the last twice.
        begin, after = levels[::2], levels[1::2]
        middle = np.sqrt(begin * after)
        # Start and middle by turns; the last step has no middle.
        rho, reached = (np.stack(two, axis=1).ravel()[:-1] for two in ((begin, middle), (middle, after)))
        began = np.repeat(begin, 2)[:-1]
        reached[-1] = after[-1]
        second = np.arange(rho.size) % 2 == 1
        first = ~second
        first[-1] = False
        # Of the ancestral step from where the whole step began: rho_down / rho, and the noise.
        kept = (reached / began) ** 2
        columns = {
            "t": self.timesteps.double().cpu().numpy(), "cx": np.where(second, 0.0, kept),
            "cb": np.where(second, kept, 0.0), "c0": 1 - kept, "save_base": first, "bx": first,
            "s": reached * np.sqrt((1 - reached / began) * (1 + reached / began)),
        }  # fmt: skip
        scale = 1 / np.sqrt(rho**2 + 1)
        columns["px"], columns["pm"] = {
            "eps": (np.ones_like(rho), -rho),
            "v": (scale**2, -rho * scale),
            "x0": (np.zeros_like(rho), np.ones_like(rho)),
        }[PREDICTIONS[self.config.prediction_type]]
        plain = {name: np.asarray(values, dtype=np.float64)[start:] for name, values in columns.items()}
        return CoefficientTable(plain, "dpmpp_sde")

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        return_dict: bool = True,
        s_noise: float = 1.0,
    ) -> Any:
        """As in diffusers."""
        if self._peer_steps(sample) or self._is_between(timestep):
            return super().step(model_output, timestep, sample, return_dict, s_noise)
        assert self._step_index is not None
        index = self._step_index
        is_second = index % 2 == 1
        # Their float32 of -log sigma and back: the path's value hangs on a level's last digit.
        start, after = (self.sigmas[i].log().neg() for i in (index - is_second, index - is_second + 1))
        ends_clean = bool(self.sigmas[index - is_second + 1] == 0)
        reached = (after if is_second else start + (after - start) * 0.5).neg().exp()
        noise = None
        if not ends_clean:
            noise = self._path(sample)(start.neg().exp(), reached) * s_noise
            noise = noise.expand_as(sample).contiguous()
        out, pred = self._advance(model_output, timestep, sample, noise=noise, draws=not ends_clean, prediction=True)
        # `state_in_first_order` and `scale_model_input` read them.
        is_first = not (is_second or ends_clean)
        self.sample, self.mid_point_sigma = (sample, reached) if is_first else (None, None)
        return output_of(DPMSolverSDESchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)

    def _path(self, sample: Tensor) -> Any:
        """(sigma, next sigma) -> noise like the sample, begun at a run's first step."""
        if self.noise_sampler is None:
            low, high = self.sigmas[self.sigmas > 0].min(), self.sigmas.max()
            self.noise_sampler = BrownianTreeNoiseSampler(sample, low.item(), high.item(), self.noise_sampler_seed)
        return self.noise_sampler
