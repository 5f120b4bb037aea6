"""What the drop-in schedulers share: the table, its rows on the sample's device, the state between steps, the noise."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.schedulers.scheduling_utils import SchedulerMixin
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from fastdiff.compat.diffusers._run import Run
from fastdiff.compat.levels import Levels, with_times
from fastdiff.process.diffusion import Prediction
from fastdiff.process.noise import check_seed
from fastdiff.process.schedule import Array, NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.tensors import FLOAT_DTYPES

Generators = torch.Generator | list[torch.Generator] | None
PREDICTIONS: dict[str, Prediction] = {
    "epsilon": "eps", "sample": "x0", "original_sample": "x0", "v_prediction": "v",
}  # fmt: skip
_HALF = (torch.bfloat16, torch.float16)


class FusedScheduler:
    """Comes before a scheduler of diffusers among a class's bases and replaces its step by one row of a table.

    Everything else (configuration, files, timesteps, noising of images) is the base class's own. Faults of it that
    docs/migration.md lists are put right unless `compat="diffusers"` is given: a further keyword of every constructor
    and of `from_config`, kept in the configuration where it is given.

    Attributes:
        seed: Key of fastdiff's own noise, which is used where a step is given no generator. None draws one from
            torch's default generator at each step; a number makes sample i of a seed the same in every batch.
        sample_ids: int64 [B], the samples' numbers in that noise; None counts from 0.
        compat: None, or "diffusers".
    """

    seed: int | None = None
    sample_ids: Tensor | None = None
    compat: Literal["diffusers"] | None = None
    _run: Run | None = None
    _why_not: str | None = None
    _levels: tuple[Tensor, Tensor] | None = None
    _built_for: tuple[Any, bytes, bytes] | None = None
    # Of the noise drawn from a generator; the model output's where None.
    _noise_dtype: torch.dtype | None = None
    _runs: dict[Any, Any]
    config: Any
    alphas_cumprod: Tensor
    timesteps: Tensor
    sigmas: Tensor
    num_inference_steps: int | None
    _step_index: int | None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if not issubclass(cls, SchedulerMixin):
            return
        # Their loader imports what a pipeline's index names: the public place.
        cls.__module__ = __name__.rsplit(".", 1)[0]
        # Each class has its peer's own constructor, and its signature; `compat` is taken beside it.
        inherited: Callable[..., None] = cls.__init__

        @functools.wraps(inherited)
        def __init__(self: Any, *args: Any, compat: Any = None, **kwargs: Any) -> None:
            if compat not in (None, "diffusers"):
                raise ValueError(f"compat must be None or 'diffusers', got {compat!r}")
            self.compat = compat
            inherited(self, *args, **kwargs)
            if compat is not None:
                self.register_to_config(compat=compat)

        cls.__init__ = __init__  # type: ignore[method-assign]

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        return {*ConfigMixin._get_init_keys(input_class), "compat"}

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; the rows are built from levels in float64, rounded once, unless compat is "diffusers"."""
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self._run = None
        sigmas = getattr(self, "sigmas", None)
        built_for = (self.config, _bytes(self.timesteps), b"" if sigmas is None else _bytes(sigmas))
        known = self._built_for
        if known is not None and known[0] is built_for[0] and known[1:] == built_for[1:]:
            # The levels in float64 and the tables stay as they are.
            self._levels = None if self._levels is None or sigmas is None else (sigmas, self._levels[1])
            return
        self._levels = None
        if self.compat is None and sigmas is not None and not _chosen_by_level(self.config):
            theirs = self.alphas_cumprod, self.timesteps, self.sigmas
            self.alphas_cumprod = torch.from_numpy(np.exp(self._log_alphas_cumprod))
            try:
                super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
                self._levels = (theirs[2], self.sigmas)
            finally:
                self.alphas_cumprod, self.timesteps, self.sigmas = theirs
        self._why_not = self._unsupported()
        self._built_for = built_for
        self._runs = {}

    @functools.cached_property
    def _log_alphas_cumprod(self) -> Array:
        """[T] log abar: in float64 from the configuration, or from their float32 product with compat="diffusers"."""
        if self.compat is not None:
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(self.alphas_cumprod.double().cpu().numpy()))
        return exact_log_alphas_cumprod(self)

    def _sigmas(self) -> Tensor:
        """The levels of the rows: those of the timesteps in float64, or `sigmas` where it is chosen otherwise."""
        return self._levels[1] if self._levels is not None and self._levels[0] is self.sigmas else self.sigmas

    @property
    def _clip(self) -> float | None:
        return self.config.clip_sample_range if self.config.clip_sample else None

    def _unsupported(self) -> str | None:
        """Why no table covers this configuration, or None."""
        config = self.config
        if config.get("prediction_type", "epsilon") not in PREDICTIONS or config.get("use_flow_sigmas", False):
            return "flow matching"
        if config.get("thresholding", False):
            return "dynamic thresholding"
        return None

    def _peer_steps(self, model_output: Tensor, sample: Tensor) -> bool:
        """Whether diffusers' own step is to run: gradients are wanted, or no table covers what is asked for."""
        if torch.is_grad_enabled() and (sample.requires_grad or model_output.requires_grad):
            return True
        if self._why_not is not None:
            _warn_peer(type(self).__name__, self._why_not)
            return True
        return sample.ndim < 2 or sample.dtype not in FLOAT_DTYPES

    def _build(self, start: int, key: Any) -> CoefficientTable:
        """The table from the level `start` on."""
        raise NotImplementedError

    def _begin(self, index: int, key: Any = None) -> Run:
        """The run that has its next row at `index`."""
        run = self._run
        if run is None or run.key != key or index != run.start + run.next:
            run = self._runs.get((index, key))
            if run is None:
                run = self._runs[index, key] = Run(self._build(index, key), index, key)
            run.next = 0
            self._run = run
        return run

    def _advance(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        *,
        key: Any = None,
        generator: Generators = None,
        noise: Tensor | None = None,
        draws: bool = False,
        prediction: Literal[True] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """One row of a scheduler that counts its steps; the result has the model output's type, as theirs."""
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        index = self._step_index
        assert index is not None
        run = self._begin(index, key)
        row = index - run.start
        seed = 0
        if draws:
            noise, seed = self._noise(model_output, generator, noise, run.noisy[row])
        out, pred = run.step(
            row, sample, model_output, noise=noise, seed=seed, sample_ids=self.sample_ids, prediction=prediction
        )
        self._step_index = index + 1
        if out.dtype != model_output.dtype:
            out = out.to(model_output.dtype)
        return out, pred

    def _noise(
        self, like: Tensor, generator: Generators, given: Tensor | None, needed: bool
    ) -> tuple[Tensor | None, int]:
        """The noise tensor, drawn from the generator as diffusers draws it, or None and a seed for fastdiff's own."""
        if given is not None:
            return given.to(like.device), 0
        if generator is not None:
            dtype = self._noise_dtype or like.dtype
            return randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype), 0
        if not needed:
            return None, 0
        if self.seed is not None:
            return None, check_seed(self.seed)
        return None, int(torch.randint(0, 1 << 62, ()))

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As in diffusers; half precision is noised in float32 and rounded once, unless compat is "diffusers"."""
        if self.compat is None and original_samples.dtype in _HALF:
            noisy = super().add_noise(original_samples.float(), noise.float(), timesteps)  # type: ignore[misc]
            return noisy.to(original_samples.dtype)  # type: ignore[no-any-return]
        return super().add_noise(original_samples, noise, timesteps)  # type: ignore[misc, no-any-return]

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As in diffusers; half precision as in `add_noise`."""
        if self.compat is None and sample.dtype in _HALF:
            velocity = super().get_velocity(sample.float(), noise.float(), timesteps)  # type: ignore[misc]
            return velocity.to(sample.dtype)  # type: ignore[no-any-return]
        return super().get_velocity(sample, noise, timesteps)  # type: ignore[misc, no-any-return]


class BySigma(FusedScheduler):
    """A scheduler with a list of sigmas and a step index."""

    def _sigmas_from(self, start: int) -> Tensor:
        return self._sigmas()[start:]

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        """The sampler's table over the levels, of which the first is that of the step `start`."""
        raise NotImplementedError

    def _build(self, start: int, key: Any) -> CoefficientTable:
        sigmas = self._sigmas_from(start).double().cpu().numpy()
        table = self._table(Levels.from_sigmas(sigmas, PREDICTIONS[self.config.prediction_type]), start, key)
        return with_times(table, self.timesteps[start:].double().cpu().numpy())


def _bytes(x: Tensor) -> bytes:
    return x.cpu().numpy().tobytes()


def _chosen_by_level(config: Any) -> bool:
    """Whether the sigmas come first and the timesteps from them: such levels are exact as they are."""
    return any(config.get(f"use_{kind}", False) for kind in ("karras_sigmas", "exponential_sigmas", "beta_sigmas",
                                                             "lu_lambdas", "flow_sigmas"))  # fmt: skip


@functools.cache
def _warn_peer(name: str, why: str) -> None:
    warnings.warn(f"{name} runs diffusers' own step, since no table covers {why}", RuntimeWarning, stacklevel=4)


def exact_log_alphas_cumprod(scheduler: Any) -> Array:
    """[T] log abar of a scheduler's configuration, in float64."""
    config = scheduler.config
    num_timesteps, kind = config.num_train_timesteps, config.beta_schedule
    start, end = config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = np.asarray(config.trained_betas, dtype=np.float64)
    elif kind == "linear":
        betas = np.linspace(start, end, num_timesteps)
    elif kind == "scaled_linear":
        betas = np.linspace(start**0.5, end**0.5, num_timesteps) ** 2
    elif kind == "squaredcos_cap_v2":
        betas = NoiseSchedule.cosine(num_timesteps).betas
    elif kind == "sigmoid":
        betas = (end - start) / (1 + np.exp(-np.linspace(-6, 6, num_timesteps))) + start
    else:
        # A schedule that only they have: their betas, and our product.
        betas = 1 - scheduler.alphas.double().cpu().numpy()
    log_abar = np.cumsum(np.log1p(-betas))
    if not config.get("rescale_betas_zero_snr", False):
        return np.asarray(log_abar)
    # Lin et al. (2023), arXiv:2305.08891, algorithm 1.
    root = np.exp(0.5 * log_abar)
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    # Where sigma / alpha is used they take the smallest number of float16 for the last abar.
    last = float(scheduler.alphas_cumprod[-1])
    with np.errstate(divide="ignore"):
        return np.asarray(np.append(2 * np.log(root[:-1]), np.log(last)))
