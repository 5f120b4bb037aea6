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
# Relative: rounding may raise a level that is repeated.
_SAME_LEVEL = 1e-5


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
    # What diffusers computes of the schedule, and `set_timesteps` leaves as diffusers has it.
    _lists: tuple[str, ...] = ("alphas_cumprod", "timesteps", "sigmas")
    _run: Run | None = None
    _why_not: str | None = None
    # The levels of the timesteps in float64, where the sigmas follow from the timesteps.
    _levels: Tensor | None = None
    # What the tables were built for: by identity and version, and by value.
    _seen: tuple[Any, Any, Any, Any, Any, Any, Any] | None = None
    _built_for: tuple[Any, bytes, bytes, bytes] | None = None
    _own_alphas: bytes | None = None
    _logs: tuple[bytes, Array] | None = None
    # Of the noise drawn from a generator; the model output's where None.
    _noise_dtype: torch.dtype | None = None
    _runs: dict[Any, Any]
    config: Any
    betas: Tensor
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
        public = __name__.rsplit(".", 1)[0]
        if cls.__module__.startswith(f"{public}."):
            cls.__module__ = public
        # Each class has its peer's own constructor, and its signature; `compat` is taken beside it.
        inherited: Callable[..., None] = cls.__init__

        @functools.wraps(inherited)
        def __init__(self: Any, *args: Any, compat: Any = None, **kwargs: Any) -> None:
            if compat not in (None, "diffusers"):
                raise ValueError(f"compat must be None or 'diffusers', got {compat!r}")
            self.compat = compat
            with torch.inference_mode(False):
                inherited(self, *args, **kwargs)
            if self._own_alphas is None:
                self._own_alphas = _bytes(self.alphas_cumprod)
            # A pipeline's index names the module that it reads off the instance: diffusers alone loads the folder.
            if type(self).__module__ == public:
                self.__module__ = next(
                    base.__module__ for base in cls.__mro__ if base.__module__.startswith("diffusers.")
                )
            if compat is not None:
                self.register_to_config(compat=compat)

        cls.__init__ = __init__  # type: ignore[method-assign]

    @staticmethod
    def _get_init_keys(input_class: Any) -> set[str]:
        return {*ConfigMixin._get_init_keys(input_class), "compat"}

    def set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        """As in diffusers; the rows are built from levels in float64, rounded once, unless compat is "diffusers"."""
        # Tensors made in inference mode would not count what is written to them.
        with torch.inference_mode(False):
            self._set_timesteps(*args, **kwargs)

    def _set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
        self._run = None
        if not self._refresh():
            return
        if self.compat is None and hasattr(self, "sigmas") and not _chosen_by_level(self.config):
            theirs = {name: getattr(self, name) for name in self._lists}
            self.alphas_cumprod = torch.from_numpy(np.exp(self._log_alphas_cumprod))
            try:
                super().set_timesteps(*args, **kwargs)  # type: ignore[misc]
                self._levels = self.sigmas
            finally:
                vars(self).update(theirs)

    def _refresh(self) -> bool:
        """Forget the tables where the timesteps, sigmas or alphas_cumprod are others than those they were built for.

        Anyone may set these, in place too. Called before each use of a table; whether something was forgotten.
        """
        # Written out, since it takes its part of each small image's step.
        here, seen = self.__dict__, self._seen
        config, lists = here["_internal_dict"], (here["timesteps"], here.get("sigmas"), here["alphas_cumprod"])
        if seen is not None:
            known_config, times, sigmas, alphas, times_version, sigmas_version, alphas_version = seen
            if (
                config is known_config
                and lists[0] is times
                and lists[1] is sigmas
                and lists[2] is alphas
                and _version(times) == times_version
                and (sigmas is None or _version(sigmas) == sigmas_version)
                and _version(alphas) == alphas_version
            ):
                return False
        self._seen = config, *lists, *(None if x is None else _version(x) for x in lists)
        built_for = self._built_for
        times, sigmas, alphas = (b"" if x is None else _bytes(x) for x in lists)
        if built_for is not None and built_for[1:] == (times, sigmas, alphas) and _same_options(built_for[0], config):
            return False
        self._built_for = (config, times, sigmas, alphas)
        self._levels = None
        self._runs = {}
        if self._run is not None:
            self._run.outdated = True
        self._why_not = self._unsupported()
        return True

    @property
    def _log_alphas_cumprod(self) -> Array:
        """[T] log abar: in float64 from the configuration; of `alphas_cumprod` where that was set by hand or compat is
        "diffusers"."""
        alphas = self._built_for[3] if self._built_for is not None else b""
        if self._logs is None or self._logs[0] != alphas:
            by_hand = self._own_alphas is not None and alphas not in (b"", self._own_alphas)
            if self.compat is not None or by_hand:
                with np.errstate(divide="ignore"):
                    logs = np.asarray(np.log(self.alphas_cumprod.double().cpu().numpy()))
            else:
                logs = exact_log_alphas_cumprod(self)
            self._logs = alphas, logs
        return self._logs[1]

    def _sigmas(self) -> Tensor:
        """The levels of the rows: those of the timesteps in float64, or `sigmas` where it is chosen otherwise."""
        return self.sigmas if self._levels is None else self._levels

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
        if bool((torch.as_tensor(self.betas) > 1).any()):
            return "a schedule with betas above 1"
        return None

    def _peer_steps(self, sample: Tensor) -> bool:
        """Whether diffusers' own step is to run, since no table covers what is asked for."""
        self._refresh()
        if self._why_not is not None:
            _warn_peer(type(self).__name__, self._why_not)
            return True
        return sample.ndim < 2 or sample.dtype not in FLOAT_DTYPES

    def _types(self, model_output: Tensor, sample: Tensor) -> tuple[torch.dtype, torch.dtype]:
        """The types of the arithmetic and of the result, where the two differ in type."""
        both = torch.promote_types(sample.dtype, model_output.dtype)
        return both, both

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
            run.begin()
        elif run.outdated:
            # In the middle of a run: the new rows go on from what it keeps.
            run = Run(self._build(run.start, key), run.start, key).following(run)
            self._runs[run.start, key] = run
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
        """One row of a scheduler that counts its steps."""
        if self._step_index is None:
            self._init_step_index(timestep)  # type: ignore[attr-defined]
        index = self._step_index
        assert index is not None
        run = self._begin(index, key)
        row = index - run.start
        result = sample.dtype
        if row == 0:
            run.first_type = result
        if result is not torch.float32 or model_output.dtype is not result:
            state, result = self._types(model_output, sample)
            sample = sample.to(state)
        seed = 0
        if draws:
            noise, seed = self._noise(model_output, generator, noise, run.noisy[row])
        out, pred = run.step(
            row, sample, model_output, noise=noise, seed=seed, sample_ids=self.sample_ids, prediction=prediction
        )
        self._step_index = index + 1
        if out.dtype != result:
            out = out.to(result)
        return out, self._image_type(pred, model_output)

    def _image_type(self, pred: Tensor | None, model_output: Tensor) -> Tensor | None:
        """The predicted image in the type that it has in diffusers: a network's own output keeps its own."""
        if pred is None or pred.dtype == model_output.dtype or PREDICTIONS[self.config.prediction_type] != "x0":
            return pred
        return pred.to(model_output.dtype)

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


class GivesVelocity:
    """Comes before a scheduler that has `get_velocity`."""

    compat: Literal["diffusers"] | None

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """As in diffusers; half precision as in `add_noise`."""
        if self.compat is None and sample.dtype in _HALF:
            velocity = super().get_velocity(sample.float(), noise.float(), timesteps)  # type: ignore[misc]
            return velocity.to(sample.dtype)  # type: ignore[no-any-return]
        return super().get_velocity(sample, noise, timesteps)  # type: ignore[misc, no-any-return]


class BySigma(FusedScheduler):
    """A scheduler with a list of sigmas and a step index."""

    def _unsupported(self) -> str | None:
        # As with zero terminal SNR where they put 4096 beneath a larger level, or with a sigma_min below the last one.
        if bool((self.sigmas[1:] > self.sigmas[:-1] * (1 + _SAME_LEVEL)).any()):
            return "levels that rise"
        return super()._unsupported()

    def index_for_timestep(self, timestep: Any, schedule_timesteps: Tensor | None = None) -> int:
        """As in diffusers; of several equal timesteps the one that is given, or the first.

        Theirs, and `compat="diffusers"`, takes the second, so that each step is one level too far.
        """
        times = self.timesteps if schedule_timesteps is None else schedule_timesteps
        if self.compat is None:
            place = place_in(timestep, times)
            if place is not None:
                return place
            equal = (times == timestep).nonzero()
            if len(equal) > 1:
                return int(equal[0])
        return super().index_for_timestep(timestep, schedule_timesteps)  # type: ignore[misc, no-any-return]

    def _sigmas_from(self, start: int) -> Tensor:
        return self._sigmas()[start : len(self.timesteps) + 1]

    def _table(self, levels: Levels, start: int, key: Any) -> CoefficientTable:
        """The sampler's table over the levels, of which the first is that of the step `start`."""
        raise NotImplementedError

    def _build(self, start: int, key: Any) -> CoefficientTable:
        sigmas = self._sigmas_from(start).double().cpu().numpy()
        table = self._table(Levels.from_sigmas(sigmas, PREDICTIONS[self.config.prediction_type]), start, key)
        return with_times(table, self.timesteps[start:].double().cpu().numpy())


def _same_options(one: Any, other: Any) -> bool:
    """Whether two configurations say the same, whatever else they note of themselves."""
    if one is other:
        return True
    mine, theirs = ({key: value for key, value in config.items() if key[:1] != "_"} for config in (one, other))
    return mine.keys() == theirs.keys() and all(np.array_equal(mine[key], theirs[key]) for key in mine)


def _bytes(x: Tensor) -> bytes:
    return x.detach().cpu().numpy().tobytes()


def _version(x: Tensor) -> Any:
    """What tells whether a tensor was written to."""
    try:
        return x._version
    except RuntimeError:
        # One that was made in inference mode.
        return _bytes(x)


def place_in(timestep: Any, times: Tensor) -> int | None:
    """Where a list of timesteps holds the given one, known by its address without waiting for a device; or None."""
    if not isinstance(timestep, Tensor) or timestep.dtype != times.dtype or timestep.device != times.device:
        return None
    if timestep.numel() != 1 or not times.is_contiguous():
        return None
    place, rest = divmod(timestep.data_ptr() - times.data_ptr(), times.element_size())
    return place if rest == 0 and 0 <= place < times.numel() else None


def is_index(timestep: Any) -> bool:
    """Whether it is a place in the list of timesteps, which diffusers' schedulers of sigmas refuse."""
    return isinstance(timestep, (int, torch.IntTensor, torch.LongTensor))


def peer_complains(scheduler: Any, timestep: Any) -> bool:
    """Whether diffusers would warn of an input that was not scaled, or refuse the timestep."""
    return not scheduler.is_scale_input_called or is_index(timestep)


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
