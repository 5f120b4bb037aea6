"""Drop-ins whose rows depend on the timestep alone: DDPM, DDIM, DDIM reversed and RePaint."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import diffusers
import numpy as np
import torch
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from diffusers.schedulers.scheduling_repaint import RePaintSchedulerOutput
from torch import Tensor

from fastdiff import samplers
from fastdiff.compat.diffusers._base import PREDICTIONS, FusedScheduler, Generators, GivesVelocity, place_in
from fastdiff.compat.diffusers._run import Run, output_of
from fastdiff.compat.levels import Levels, first_rows, with_times
from fastdiff.process.diffusion import Prediction, Variance
from fastdiff.process.parametrization import Parametrization
from fastdiff.process.schedule import Array
from fastdiff.process.table import CoefficientTable

_VARIANCES: dict[str, Variance] = {
    "fixed_small": "fixed_small",
    "fixed_small_log": "fixed_small",
    "fixed_large": "fixed_large",
    "fixed_large_log": "fixed_large",
    "learned": "learned",
    "learned_range": "learned_range",
}


def _variance(kind: str) -> Variance:
    """The variance of a type; "fixed_small" for those that there are not, as in diffusers."""
    return _VARIANCES.get(kind, "fixed_small")


class _ByTimestep(FusedScheduler):
    """A scheduler whose step is told the timestep and may be called in any order.

    A run holds the table over all timesteps; steps from a timestep that is not in the list get a table of one row.
    """

    def _steps(self) -> list[tuple[int, int]]:
        """(timestep, the timestep that its step leads to or -1) for every timestep of the list."""
        return _falling([int(t) for t in self.timesteps.tolist()])

    def _previous(self, timestep: int) -> int:
        """Where a step from a timestep that is not in the list leads to."""
        assert self.num_inference_steps is not None
        return timestep - int(self.config.num_train_timesteps) // self.num_inference_steps

    def _chain(self, times: list[int], end: int, key: Any) -> CoefficientTable:
        """The table over falling timesteps, the last of which leads to the timestep `end`, or -1."""
        raise NotImplementedError

    def _levels_of(self, times: list[int], end: int, prediction: str, variance: Variance = "fixed_small") -> Levels:
        """The levels of falling timesteps, and that of `end` where noise is left there."""
        last = self._level(end)
        levels = [self._level(t) for t in times] + ([last] if last < 0 else [])
        return Levels.from_logs(levels, PREDICTIONS[prediction], variance=variance)

    def _level(self, timestep: int) -> float:
        """log abar of a timestep, or of the end for -1."""
        if timestep >= 0:
            return float(self._log_alphas_cumprod[timestep])
        final = getattr(self, "final_alpha_cumprod", None)
        return 0.0 if final is None or float(final) == 1.0 else float(self._log_alphas_cumprod[0])

    def _find(self, timestep: Any, key: Any) -> tuple[Run, int] | None:
        """The run and row of a timestep; None where a level has no signal for the network's prediction to be read."""
        found: tuple[Run, dict[int, int]] | None = self._runs.get(key)
        if found is None:
            found = self._runs[key] = self._all_rows(key)
        run, index = found
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            place = place_in(timestep, self.timesteps)
            if place is not None and len(run.table) == self.timesteps.numel():
                return run, place
        t = int(timestep)
        row = index.get(t)
        if row is not None:
            return run, row
        if not self._readable(t):
            return None
        single = (key, t)
        if single not in self._runs:
            table = with_times(self._chain([t], self._previous(t), key), [t])
            self._runs[single] = (Run(table, 0, key), {t: 0})
        return self._runs[single][0], 0

    def _readable(self, timestep: int) -> bool:
        return self.config.get("prediction_type", "epsilon") != "epsilon" or self._level(timestep) > -np.inf

    def _all_rows(self, key: Any) -> tuple[Run, dict[int, int]]:
        steps = [(t, end) for t, end in self._steps() if self._readable(t)]
        times = [t for t, _ in steps]
        if all(before[1] == after[0] for before, after in pairwise(steps)):
            table = self._chain(times, steps[-1][1], key)
        else:
            table = _stacked([self._chain([t], end, key) for t, end in steps])
        return Run(with_times(table, times), 0, key), {t: row for row, t in enumerate(times)}


def _falling(times: list[int]) -> list[tuple[int, int]]:
    """Each timestep and the next of the list, or -1 at its end."""
    return list(zip(times, [*times[1:], -1], strict=True))


def _stacked(tables: list[CoefficientTable]) -> CoefficientTable:
    """Tables of one row, none of which keeps anything, as one."""
    first = tables[0]
    columns = {name: np.concatenate([table[name] for table in tables]) for name in first.columns}
    return CoefficientTable(columns, first.name, first.learned_variance, options=first.options)


def _same_type(sample: Tensor, model_output: Tensor) -> Tensor:
    """The sample in the type that arithmetic of both has."""
    if sample.dtype == model_output.dtype:
        return sample
    return sample.to(torch.promote_types(sample.dtype, model_output.dtype))


class DDPMScheduler(GivesVelocity, _ByTimestep, diffusers.DDPMScheduler):  # type: ignore[misc]
    """diffusers.DDPMScheduler on `samplers.ddpm`.

    Put right: the last step draws no noise even where its timestep is above 0, and variance_type "fixed_large_log" has
    the variance that its name says, where diffusers gives NaN (with compat as well). The schedule is float64.
    """

    def _previous(self, timestep: int) -> int:
        if self.custom_timesteps or self.num_inference_steps:
            raise ValueError(f"timestep must be one of scheduler.timesteps, got {timestep}")
        return timestep - 1

    def _chain(self, times: list[int], end: int, key: Any) -> CoefficientTable:
        levels = self._levels_of(times, end, self.config.prediction_type, _variance(key))
        table = samplers.ddpm(levels.diffusion, timesteps=levels.timesteps, clip=self._clip)
        if end >= 0 or self.compat is None or times[-1] == 0:
            return first_rows(table, len(times))
        # Their last step draws noise of the variance beta, or of the least one that they allow, 1e-20.
        columns = {name: values.copy() for name, values in table._columns.items()}
        if table.learned_variance:
            columns["s"][-1] = 1.0
            if key == "learned_range":
                columns["log_min"][-1] = np.log(1e-20)
        else:
            large = _variance(key) == "fixed_large"
            columns["s"][-1] = np.sqrt(-np.expm1(self._level(times[-1]))) if large else 1e-10
        return CoefficientTable(columns, table.name, table.learned_variance, options=table.options)

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        found = None if self._peer_steps(sample) else self._find(timestep, self.variance_type)
        if found is None:
            return super().step(model_output, timestep, sample, generator, return_dict)
        run, row = found
        kind = self.variance_type
        learned = kind in ("learned", "learned_range")
        sample = _same_type(sample, model_output)
        channels = sample.shape[1]
        learned = learned and model_output.shape[1] == 2 * channels
        if kind == "learned" and learned:
            # Their "learned" is the variance itself, and ours its log.
            model_output = torch.cat([model_output[:, :channels], model_output[:, channels:].log()], dim=1)
        noise, seed = None, 0
        if run.t[row] > 0:
            like = model_output[:, :channels] if learned else model_output
            noise, seed = self._noise(like, generator, None, run.noisy[row])
        out, pred = run.step(
            row, sample, model_output, noise=noise, seed=seed, sample_ids=self.sample_ids, learned_variance=learned,
            prediction=True,
        )  # fmt: skip
        pred = self._image_type(pred, model_output)
        return output_of(DDPMSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class DDIMScheduler(GivesVelocity, _ByTimestep, diffusers.DDIMScheduler):  # type: ignore[misc]
    """diffusers.DDIMScheduler on `samplers.ddim`.

    Put right: each step leads to the next timestep of the list; diffusers steps by T // n, which is another one where
    n does not divide T and the spacing is "linspace" or "trailing". The schedule is float64.
    """

    def _steps(self) -> list[tuple[int, int]]:
        if self.compat is None:
            return super()._steps()
        return [(t, max(self._previous(t), -1)) for t in (int(t) for t in self.timesteps.tolist())]

    def _chain(self, times: list[int], end: int, key: Any) -> CoefficientTable:
        eta, clipped = key
        levels = self._levels_of(times, end, self.config.prediction_type)
        eps: Literal["rederive", "keep"] = "rederive" if clipped else "keep"
        table = samplers.ddim(levels.diffusion, timesteps=levels.timesteps, eta=eta, clip=self._clip, clipped_eps=eps)
        return first_rows(table, len(times))

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: Generators = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        found = None
        if self.num_inference_steps is not None and 0 <= eta <= 1 and not self._peer_steps(sample):
            found = self._find(timestep, (eta, bool(use_clipped_model_output)))
        if found is None:
            return super().step(
                model_output, timestep, sample, eta, use_clipped_model_output, generator, variance_noise, return_dict
            )
        sample = _same_type(sample, model_output)
        run, row = found
        noise, seed = None, 0
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("give generator or variance_noise, not both")
            noise, seed = self._noise(model_output, generator, variance_noise, run.noisy[row])
        out, pred = run.step(
            row, sample, model_output, noise=noise, seed=seed, sample_ids=self.sample_ids, prediction=True
        )
        pred = self._image_type(pred, model_output)
        return output_of(DDIMSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class DDIMInverseScheduler(_ByTimestep, diffusers.DDIMInverseScheduler):  # type: ignore[misc]
    """diffusers.DDIMInverseScheduler: DDIM's row from each level to the next noisier one.

    As there, the network is asked at the level that a step leads to and its output is read at the level that the step
    starts from. Put right: each step starts from the timestep before it in the list (diffusers goes back by T // n),
    and the first step of a network that predicts the sample is finite, where theirs divides by 0.
    """

    def _steps(self) -> list[tuple[int, int]]:
        times = [int(t) for t in self.timesteps.tolist()]
        if self.compat is None:
            return list(zip(times, [-1, *times[:-1]], strict=True))
        return [(t, self._previous(t)) for t in times]

    def _level(self, timestep: int) -> float:
        if timestep < 0 and float(self.initial_alpha_cumprod) != 1.0:
            return float(self._log_alphas_cumprod[0])
        return float(self._log_alphas_cumprod[min(timestep, len(self) - 1)]) if timestep >= 0 else 0.0

    def _all_rows(self, key: Any) -> tuple[Run, dict[int, int]]:
        steps = self._steps()
        table = self._upwards([start for _, start in steps], [t for t, _ in steps])
        return Run(table, 0, key), {t: row for row, (t, _) in enumerate(steps)}

    def _chain(self, times: list[int], end: int, key: Any) -> CoefficientTable:
        return self._upwards([end], times)

    def _upwards(self, starts: list[int], ends: list[int]) -> CoefficientTable:
        start, end = (np.array([self._level(t) for t in times]) for times in (starts, ends))
        prediction: Prediction = PREDICTIONS[self.config.prediction_type]
        read = np.where(start < 0, start, end) if prediction == "x0" else start
        alpha, sigma = np.exp(0.5 * read), np.sqrt(-np.expm1(read))
        network = Parametrization(prediction)
        px, pm = network.x0(alpha, sigma)
        ex, em = network.eps(alpha, sigma)
        above: Array = np.sqrt(-np.expm1(end))
        clip = np.inf if self._clip is None else self._clip
        columns: dict[str, Any] = {
            "t": ends, "px": px, "pm": pm, "clip": clip, "cx": above * ex, "cm": above * em, "c0": np.exp(0.5 * end),
        }  # fmt: skip
        return CoefficientTable(columns, "ddim_inverse", init_scale=0.0, order=1)

    def step(self, model_output: Tensor, timestep: int, sample: Tensor, return_dict: bool = True) -> Any:
        """As in diffusers."""
        found = None if self._peer_steps(sample) else self._find(timestep, None)
        if found is None:
            return super().step(model_output, timestep, sample, return_dict)
        run, row = found
        out, pred = run.step(row, _same_type(sample, model_output), model_output, prediction=True)
        return output_of(DDIMSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)


class RePaintScheduler(_ByTimestep, diffusers.RePaintScheduler):  # type: ignore[misc]
    """diffusers.RePaintScheduler on the rows of `samplers.ddim`.

    The known and the unknown part share one noise, as there. `undo_step` is their own: it draws once per
    timestep of a jump.
    """

    def _steps(self) -> list[tuple[int, int]]:
        assert self.num_inference_steps is not None
        stride = int(self.config.num_train_timesteps) // self.num_inference_steps
        times = [stride * i for i in range(self.num_inference_steps)][::-1]
        return _falling(times)

    def _chain(self, times: list[int], end: int, key: Any) -> CoefficientTable:
        if key == "known":
            after = np.array([self._level(t) for t in [*times[1:], end]])
            columns = {"t": times, "evaluate": np.zeros(len(times)), "cx": np.exp(0.5 * after),
                       "s": np.sqrt(-np.expm1(after))}  # fmt: skip
            return CoefficientTable(columns, "known", init_scale=0.0)
        levels = self._levels_of(times, end, "epsilon")
        clip = 1.0 if self.config.clip_sample else None
        table = samplers.ddim(levels.diffusion, timesteps=levels.timesteps, eta=key, clip=clip, clipped_eps="keep")
        return first_rows(table, len(times))

    def step(
        self,
        model_output: Tensor,
        timestep: int,
        sample: Tensor,
        original_image: Tensor,
        mask: Tensor,
        generator: Generators = None,
        return_dict: bool = True,
    ) -> Any:
        """As in diffusers."""
        found = known_found = None
        if not self._peer_steps(sample) and 0 <= self.eta <= 1:
            # The timesteps go up and down: the rows are found by value.
            timestep = int(timestep)
            found, known_found = self._find(timestep, float(self.eta)), self._find(timestep, "known")
        if found is None or known_found is None:
            return super().step(model_output, timestep, sample, original_image, mask, generator, return_dict)
        sample = _same_type(sample, model_output)
        (run, row), (known_run, known_row) = found, known_found
        noise, seed = self._noise(model_output, generator, None, run.noisy[row] or known_run.noisy[known_row])
        shared: dict[str, Any] = {"noise": noise, "seed": seed, "sample_ids": self.sample_ids}
        unknown, pred = run.step(row, sample, model_output, prediction=True, **shared)
        original = original_image.to(sample.device, sample.dtype).expand_as(sample).contiguous()
        known, _ = known_run.step(known_row, original, None, **shared)
        out = torch.lerp(unknown, known, mask.to(unknown.device, unknown.dtype))
        return output_of(RePaintSchedulerOutput, return_dict, prev_sample=out, pred_original_sample=pred)
