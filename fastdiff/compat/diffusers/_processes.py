"""Drop-ins of processes without betas: flow matching, and EDM's preconditioned networks."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_edm_euler import EDMEulerSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.diffusers._base import BySigma, FusedScheduler, Generators, is_index, peer_complains
from fastdiff.compat.diffusers._multistep import dpmpp_table
from fastdiff.compat.diffusers._run import output_of
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.pndm import ADAMS_BASHFORTH

# Stands where other schedulers have abar.
_NO_ALPHAS = torch.ones(1)


class _WithoutBetas(BySigma):
    """A scheduler whose sigmas are all that there is of its process. It computes in float32 at least."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__new__(cls)
        made.alphas_cumprod = _NO_ALPHAS
        return made

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super(FusedScheduler, self).set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self._run = None
        self._refresh()

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        both = torch.promote_types(sample.dtype, model_output.dtype)
        return torch.promote_types(both, torch.float32), model_output.dtype


class IPNDMScheduler(_WithoutBetas, diffusers.IPNDMScheduler):  # type: ignore[misc]
    """diffusers.IPNDMScheduler: v networks of the process with sigma = sin^2(t pi / 2), by Adams-Bashforth on eps.

    Put right: the first step reads the network, as x_0 = -v where alpha is 0; theirs, and `compat="diffusers"`, divides
    by 1e-8 what rounding has made 0. The levels are float64, where the alpha of theirs has lost digits near 1.
    """

    betas: Tensor
    alphas: Tensor

    def _unsupported(self) -> str | None:
        return "a schedule with betas above 1" if bool((self.betas > 1).any()) else None

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        both = torch.promote_types(sample.dtype, model_output.dtype)
        return both, both

    def _levels_of_steps(self) -> tuple[Any, Any]:
        """[N + 1] alpha and sigma."""
        if self.compat is not None:
            return self.alphas.double().numpy(), self.betas.double().numpy()
        if self.config.trained_betas is not None:
            sigma = np.asarray(self.config.trained_betas, dtype=np.float64)
        else:
            sigma = np.sin(np.linspace(1.0, 0.0, len(self.betas)) * (np.pi / 2)) ** 2
        return np.sqrt((1 - sigma) * (1 + sigma)), sigma

    def _build(self, start: int, key: Any) -> CoefficientTable:
        alpha, sigma = (x[start:] for x in self._levels_of_steps())
        num_rows = alpha.size - 1
        a, s, a_next, s_next = alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]
        # Every row pushes e = s x + a m, and E = sum w_k e_k leads to a' (x - s E) / a + s' E, with e written out.
        weights = np.zeros((num_rows, 4))
        for row in range(num_rows):
            own = ADAMS_BASHFORTH[min(row, 3)]
            weights[row, : len(own)] = own
        floor = np.maximum(a, 1e-8)
        per_value = s_next - a_next * s / floor
        columns = {
            "t": self.timesteps[start:].double().cpu().numpy(), "px": s, "pm": a, "push": np.ones(num_rows),
            "cx": a_next / floor + weights[:, 0] * per_value * s, "cm": weights[:, 0] * per_value * a,
        } | {f"c{age}": weights[:, age] * per_value for age in (1, 2, 3)}  # fmt: skip
        if self.compat is None or a[0] > 1e-8:
            # With e alone no division is left.
            columns["cx"][0] = a_next[0] * a[0] + s_next[0] * s[0]
            columns["cm"][0] = s_next[0] * a[0] - a_next[0] * s[0]
        return CoefficientTable(columns, "ipndm", data_prediction=False)

    def step(self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        if self.num_inference_steps is None or self._peer_steps(sample):
            return super().step(model_output, timestep, sample, return_dict)
        out, _ = self._advance(model_output, timestep, sample)
        return output_of(SchedulerOutput, return_dict, prev_sample=out)


class _Flow(_WithoutBetas):
    """A scheduler of x_t = (1 - sigma) x_0 + sigma z and its velocity."""

    _noise_dtype = torch.float32

    def _unsupported(self) -> str | None:
        return None

    def _image_type(self, pred: Tensor | None, model_output: Tensor) -> Tensor | None:
        return pred


class FlowMatchEulerDiscreteScheduler(_Flow, diffusers.FlowMatchEulerDiscreteScheduler):  # type: ignore[misc]
    """diffusers.FlowMatchEulerDiscreteScheduler, a row a step: x' = x + (sigma' - sigma) m, or with fresh noise.

    A step with `per_token_timesteps` is their own.
    """

    def _build(self, start: int, key: Any) -> CoefficientTable:
        sigmas = self._sigmas_from(start).double().cpu().numpy()
        here, there = sigmas[:-1], sigmas[1:]
        columns: dict[str, Any] = {"t": self.timesteps[start:].double().cpu().numpy(), "px": 1.0, "pm": -here}
        if self.config.stochastic_sampling:
            columns |= {"c0": 1 - there, "s": there}
        else:
            columns |= {"cx": 1.0, "cm": there - here}
        return CoefficientTable(columns, "flow_euler")

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
        per_token_timesteps: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        if per_token_timesteps is not None or is_index(timestep) or self._peer_steps(sample):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, per_token_timesteps,
                return_dict,
            )  # fmt: skip
        draws = bool(self.config.stochastic_sampling)
        out, _ = self._advance(model_output, timestep, sample, generator=generator if draws else None, draws=draws)
        return output_of(FlowMatchEulerDiscreteSchedulerOutput, return_dict, prev_sample=out)


class FlowMatchHeunDiscreteScheduler(_Flow, diffusers.FlowMatchHeunDiscreteScheduler):  # type: ignore[misc]
    """diffusers.FlowMatchHeunDiscreteScheduler: two rows a step, one for the last. With s_churn it is their own."""

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """As in diffusers."""
        # Every timestep but the first stands there twice, and a step begins with the second.
        return super(BySigma, self).index_for_timestep(timestep, schedule_timesteps)  # type: ignore[no-any-return]

    def _build(self, start: int, key: Any) -> CoefficientTable:
        sigmas = self._sigmas_from(start).double().cpu().numpy()
        # Their list has each level twice but the first and the last: a first row goes from one to the next.
        length = np.diff(sigmas)
        second = np.arange(length.size) % 2 == 1
        length[second] = length[np.flatnonzero(second) - 1]
        half = np.where(second, length / 2, 0.0)
        columns = {
            "t": self.timesteps[start:].double().cpu().numpy(), "pm": 1.0, "push": ~second, "save_base": ~second,
            "bx": ~second, "cx": ~second, "cb": second, "cm": np.where(second, half, length), "c1": half,
        }  # fmt: skip
        plain = {name: np.asarray(values, dtype=np.float64) for name, values in columns.items()}
        return CoefficientTable(plain, "flow_heun", data_prediction=False)

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
        if s_churn > 0 or is_index(timestep) or self._peer_steps(sample) or self._is_between(timestep):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict
            )
        out, _ = self._advance(model_output, timestep, sample)
        # `state_in_first_order` reads it: a step is half done.
        run = self._run
        assert run is not None
        self.dt = run.t[run.next - 1] if run.next % 2 else None
        return output_of(FlowMatchHeunDiscreteSchedulerOutput, return_dict, prev_sample=out)

    def _is_between(self, timestep: float | Tensor) -> bool:
        """Whether a run begins or began at the second half of a step."""
        if self._run is not None:
            return False
        if self._step_index is None:
            self._init_step_index(timestep)
        assert self._step_index is not None
        return self._step_index % 2 == 1 or not self.state_in_first_order


class _Preconditioned(_WithoutBetas):
    """A scheduler of x_0 + sigma z whose network is preconditioned by `sigma_data`."""

    def _unsupported(self) -> str | None:
        if self.config.get("thresholding", False):
            return "dynamic thresholding"
        if self.config.prediction_type not in ("epsilon", "v_prediction"):
            return f"prediction_type {self.config.prediction_type!r}"
        return None

    def _image_type(self, pred: Tensor | None, model_output: Tensor) -> Tensor | None:
        return pred

    def _build(self, start: int, key: Any) -> CoefficientTable:
        levels = Levels.from_sigmas(self._sigmas_from(start).double().cpu().numpy(), "F")
        levels = replace(levels, diffusion=replace(levels.diffusion, sigma_data=float(self.config.sigma_data)))
        table = variance_exploding(self._table(levels, start, key))
        if self.config.prediction_type == "epsilon":
            return table
        # Their "v" is -F.
        return replace(table, columns={**table.columns, "pm": -table["pm"]})


class EDMEulerScheduler(_Preconditioned, diffusers.EDMEulerScheduler):  # type: ignore[misc]
    """diffusers.EDMEulerScheduler on `samplers.euler`. A step with s_churn > 0 is their own."""

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
        pred_original_sample: Tensor | None = None,
    ) -> Any:
        """As in diffusers."""
        is_theirs = s_churn > 0 or pred_original_sample is not None or peer_complains(self, timestep)
        if is_theirs or self._peer_steps(sample):
            return super().step(
                model_output, timestep, sample, s_churn, s_tmin, s_tmax, s_noise, generator, return_dict,
                pred_original_sample,
            )  # fmt: skip
        out, pred = self._advance(model_output, timestep, sample, prediction=True)
        return output_of(EDMEulerSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class EDMDPMSolverMultistepScheduler(_Preconditioned, diffusers.EDMDPMSolverMultistepScheduler):  # type: ignore[misc]
    """diffusers.EDMDPMSolverMultistepScheduler on `samplers.dpmpp` and `dpmpp_sde`; order 3 is theirs."""

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        both = torch.promote_types(sample.dtype, model_output.dtype)
        return both, both

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        build = samplers.dpmpp if self.config.algorithm_type == "dpmsolver++" else samplers.dpmpp_sde
        return dpmpp_table(self, levels, build)

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
        draws = self.config.algorithm_type.startswith("sde")
        out, _ = self._advance(model_output, timestep, sample, generator=generator if draws else None, draws=draws)
        return output_of(SchedulerOutput, return_dict, prev_sample=out)
