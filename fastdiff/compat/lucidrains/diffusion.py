"""`GaussianDiffusion` of denoising-diffusion-pytorch: its constructor, methods and buffers on fastdiff's tables."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import samplers
from fastdiff.ops.table_state import TableState
from fastdiff.process.checks import check_keys
from fastdiff.process.diffusion import Diffusion, Prediction
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.process.table import CoefficientTable
from fastdiff.tensors import per_sample

__all__ = ["GaussianDiffusion", "ModelPrediction"]

# Equal to their {}, and nobody can write into it.
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})
_OBJECTIVES: dict[str, Prediction] = {"pred_noise": "eps", "pred_x0": "x0", "pred_v": "v"}


class ModelPrediction(NamedTuple):
    """What a network's output says."""

    pred_noise: Tensor
    pred_x_start: Tensor


class GaussianDiffusion(nn.Module):
    """A network with its process: called with images it gives the loss, `sample` gives images.

    It takes lucidrains' networks, fastdiff's, and any module with `channels`, `out_dim` and `self_condition` that is
    called as model(x, t, x_self_cond). Its state dict has lucidrains' names. Noise is drawn from PyTorch's generator
    in their order, so that a seed gives the images it gives there.

    Args:
        model: The network; as many channels out as in.
        image_size: Height and width, or one number for both.
        timesteps: T.
        sampling_timesteps: Below T, `sample` takes that many steps of DDIM.
        objective: "pred_noise", "pred_x0" or "pred_v".
        beta_schedule: "linear", "cosine" or "sigmoid".
        schedule_fn_kwargs: Of the schedule: cosine: s; sigmoid: start, end, tau.
        ddim_sampling_eta: Noise scale of DDIM, in [0, 1].
        auto_normalize: Images outside are in [0, 1], else in [-1, 1].
        offset_noise_strength: Noise added per channel in training.
        min_snr_loss_weight: Weigh the loss by the signal-to-noise ratio, at most `min_snr_gamma`.
        min_snr_gamma: See above.
        immiscible: Give each image of a batch a near noise in training; needs SciPy.

    Raises:
        ValueError: arguments out of range, or a network that does not fit.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int | tuple[int, int] | list[int],
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        objective: str = "pred_v",
        beta_schedule: str = "sigmoid",
        schedule_fn_kwargs: Mapping[str, Any] = _NO_OPTIONS,
        ddim_sampling_eta: float = 0.0,
        auto_normalize: bool = True,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5,
        immiscible: bool = False,
    ) -> None:
        super().__init__()
        config = getattr(model, "config", None)
        self.channels: int = getattr(model, "channels", None) or config.in_channels  # type: ignore[union-attr]
        out_dim = getattr(model, "out_dim", None) or config.out_channels  # type: ignore[union-attr]
        self.self_condition = bool(getattr(model, "self_condition", False))
        # A subclass may make something of further channels, as one that learns the variance does.
        if out_dim != self.channels and type(self) is GaussianDiffusion:
            raise ValueError(f"the network must have as many channels out as in, got {out_dim} for {self.channels}")
        if getattr(model, "random_or_learned_sinusoidal_cond", False):
            raise ValueError("networks with random or learned frequencies are for continuous times, not for these")
        if objective not in _OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(_OBJECTIVES)}, got {objective!r}")
        size = (image_size, image_size) if isinstance(image_size, int) else tuple(image_size)
        if len(size) != 2:
            raise ValueError(f"image_size must be one number or two, got {image_size!r}")
        self.model = model
        self.image_size = size
        self.objective = objective
        self.schedule = _schedule(beta_schedule, timesteps, schedule_fn_kwargs)
        self.num_timesteps = len(self.schedule)
        self.sampling_timesteps = self.num_timesteps if sampling_timesteps is None else sampling_timesteps
        if not 1 <= self.sampling_timesteps <= self.num_timesteps:
            raise ValueError(f"sampling_timesteps must be in 1..{self.num_timesteps}, got {sampling_timesteps}")
        self.is_ddim_sampling = self.sampling_timesteps < self.num_timesteps
        self.ddim_sampling_eta = ddim_sampling_eta
        self.immiscible = immiscible
        self.offset_noise_strength = offset_noise_strength
        self.auto_normalize = auto_normalize
        for name, values in _buffers(self.schedule, objective, min_snr_gamma if min_snr_loss_weight else None).items():
            self.register_buffer(name, torch.tensor(values, dtype=torch.float32))
        self._built = {name: buffer.clone() for name, buffer in self.named_buffers(recurse=False)}
        self._tables: dict[tuple[str, str], TableState] = {}

    alphas_cumprod: Tensor
    betas: Tensor

    @property
    def device(self) -> torch.device:
        """Where the process is."""
        return self.betas.device

    @property
    def diffusion(self) -> Diffusion:
        """The process for fastdiff's own samplers and likelihoods, with the betas of a file that was loaded."""
        known = torch.tensor(self.schedule.alphas_cumprod, dtype=torch.float32)
        # Another program's roundings to float32 are no other schedule.
        is_known = torch.allclose(self.alphas_cumprod.cpu(), known, rtol=0, atol=1e-6)
        schedule = self.schedule if is_known else NoiseSchedule.from_betas(self.betas.double().cpu().numpy())
        return Diffusion(schedule, _OBJECTIVES[self.objective])

    def normalize(self, img: Tensor) -> Tensor:
        """Images from [0, 1] to [-1, 1], with `auto_normalize`."""
        return img * 2 - 1 if self.auto_normalize else img

    def unnormalize(self, img: Tensor) -> Tensor:
        """The inverse of `normalize`."""
        return (img + 1) * 0.5 if self.auto_normalize else img

    def _at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        return per_sample(getattr(self, name)[t], x)

    def predict_start_from_noise(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_0 from x_t and its noise; t is int64 [B]."""
        recip = self._at("sqrt_recip_alphas_cumprod", t, x_t)
        return recip * x_t - self._at("sqrt_recipm1_alphas_cumprod", t, x_t) * noise

    def predict_noise_from_start(self, x_t: Tensor, t: Tensor, x0: Tensor) -> Tensor:
        """The noise from x_t and x_0."""
        recip = self._at("sqrt_recip_alphas_cumprod", t, x_t)
        return (recip * x_t - x0) / self._at("sqrt_recipm1_alphas_cumprod", t, x_t)

    def predict_v(self, x_start: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """v from x_0 and the noise."""
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * noise - self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * x_start

    def predict_start_from_v(self, x_t: Tensor, t: Tensor, v: Tensor) -> Tensor:
        """x_0 from x_t and v."""
        signal = self._at("sqrt_alphas_cumprod", t, x_t)
        return signal * x_t - self._at("sqrt_one_minus_alphas_cumprod", t, x_t) * v

    def q_posterior(self, x_start: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean [B, ...], variance and clipped log-variance [B, 1, ...] of q(x_{t-1} | x_t, x_0)."""
        mean = self._at("posterior_mean_coef1", t, x_t) * x_start + self._at("posterior_mean_coef2", t, x_t) * x_t
        variance = self._at("posterior_variance", t, x_t)
        return mean, variance, self._at("posterior_log_variance_clipped", t, x_t)

    def model_predictions(
        self,
        x: Tensor,
        t: Tensor,
        x_self_cond: Tensor | None = None,
        clip_x_start: bool = False,
        rederive_pred_noise: bool = False,
    ) -> ModelPrediction:
        """The noise and the image that the network sees in x [B, ...] at t [B].

        With `clip_x_start` the image is clipped to [-1, 1]; the noise is derived from it again except where the
        network predicts the noise, and there too with `rederive_pred_noise`.
        """
        out = self.model(x, t, x_self_cond)
        if self.objective == "pred_noise":
            start = self.predict_start_from_noise(x, t, out)
        else:
            start = out if self.objective == "pred_x0" else self.predict_start_from_v(x, t, out)
        start = start.clamp(-1.0, 1.0) if clip_x_start else start
        keeps_noise = self.objective == "pred_noise" and not (clip_x_start and rederive_pred_noise)
        return ModelPrediction(out if keeps_noise else self.predict_noise_from_start(x, t, start), start)

    def p_mean_variance(
        self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None, clip_denoised: bool = True
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of the reverse step, and the predicted image."""
        start = self.model_predictions(x, t, x_self_cond).pred_x_start
        start = start.clamp(-1.0, 1.0) if clip_denoised else start
        return *self.q_posterior(x_start=start, x_t=x, t=t), start

    @torch.inference_mode()
    def p_sample(self, x: Tensor, t: int, x_self_cond: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the predicted image."""
        if self._can_fuse("p_mean_variance", "q_posterior"):
            return self._fused_step(x, t, x_self_cond, self._state(samplers.ddpm), self.num_timesteps - 1 - t)
        times = torch.full((x.shape[0],), t, device=self.device, dtype=torch.int64)
        mean, _, log_variance, start = self.p_mean_variance(x, times, x_self_cond, clip_denoised=True)
        noise = torch.randn_like(x) if t > 0 else torch.zeros_like(x)
        return mean + (0.5 * log_variance).exp() * noise, start

    @torch.inference_mode()
    def p_sample_loop(self, shape: tuple[int, ...], return_all_timesteps: bool = False) -> Tensor:
        """Images of `shape` by the ancestral process; with `return_all_timesteps` [B, T + 1, C, H, W]."""

        def step(x: Tensor, start: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
            return self.p_sample(x, t, start)

        return self._loop(step, shape, range(self.num_timesteps - 1, -1, -1), return_all_timesteps)

    @torch.inference_mode()
    def ddim_sample(self, shape: tuple[int, ...], return_all_timesteps: bool = False) -> Tensor:
        """Images of `shape` by DDIM; with `return_all_timesteps` [B, steps + 1, C, H, W]."""
        # float32, as theirs: where a time falls on a whole number, rounding decides.
        grid = torch.linspace(-1, self.num_timesteps - 1, steps=self.sampling_timesteps + 1).int().tolist()
        times = sorted(set(grid[1:]))
        eta = float(self.ddim_sampling_eta)
        state = self._state(samplers.ddim, timesteps=times, eta=eta) if self._can_fuse() else None

        def step(x: Tensor, start: Tensor | None, row: int) -> tuple[Tensor, Tensor]:
            t = times[-1 - row]
            if state is not None:
                return self._fused_step(x, t, start, state, row)
            return self._ddim_step(x, t, times[-2 - row] if row + 1 < len(times) else None, start, eta)

        return self._loop(step, shape, range(len(times)), return_all_timesteps)

    def _ddim_step(
        self, x: Tensor, t: int, following: int | None, x_self_cond: Tensor | None, eta: float
    ) -> tuple[Tensor, Tensor]:
        """A step by the methods and buffers themselves; the last leads to the predicted image."""
        times = torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
        eps, start, *_ = self.model_predictions(x, times, x_self_cond, clip_x_start=True, rederive_pred_noise=True)
        if following is None:
            return start, start
        abar, abar_next = self.alphas_cumprod[t], self.alphas_cumprod[following]
        sigma = eta * ((1 - abar / abar_next) * (1 - abar_next) / (1 - abar)).sqrt()
        mean = start * abar_next.sqrt() + (1 - abar_next - sigma**2).sqrt() * eps
        return mean + sigma * torch.randn_like(x), start

    @torch.inference_mode()
    def sample(self, batch_size: int = 16, return_all_timesteps: bool = False) -> Tensor:
        """Images [batch_size, C, H, W] in [0, 1] (or the network's own range without `auto_normalize`)."""
        loop = self.ddim_sample if self.is_ddim_sampling else self.p_sample_loop
        return loop((batch_size, self.channels, *self.image_size), return_all_timesteps=return_all_timesteps)

    @torch.inference_mode()
    def interpolate(self, x1: Tensor, x2: Tensor, t: int | None = None, lam: float = 0.5) -> Tensor:
        """Noise two batches of images (in [-1, 1]) to time t, mix them, and take the noise away again."""
        if x1.shape != x2.shape:
            raise ValueError(f"x1 and x2 must have one shape, got {list(x1.shape)} and {list(x2.shape)}")
        t = self.num_timesteps - 1 if t is None else t
        times = torch.full((x1.shape[0],), t, device=x1.device)
        image = (1 - lam) * self.q_sample(x1, times) + lam * self.q_sample(x2, times)
        start = None
        for i in range(t - 1, -1, -1):
            image, start = self.p_sample(image, i, start if self.self_condition else None)
        return image

    def _loop(
        self,
        step: Callable[[Tensor, Tensor | None, int], tuple[Tensor, Tensor]],
        shape: tuple[int, ...],
        indices: Iterable[int],
        return_all_timesteps: bool,
    ) -> Tensor:
        image = torch.randn(shape, device=self.device)
        images, start = [image], None
        for i in indices:
            image, start = step(image, start if self.self_condition else None, i)
            images.append(image)
        return self.unnormalize(torch.stack(images, dim=1) if return_all_timesteps else image)

    def _can_fuse(self, *methods: str) -> bool:
        """Whether a step is a row of a table: no method that it stands for was replaced, and no buffer."""
        return self._keeps(GaussianDiffusion, *methods) and self._has_its_buffers()

    def _keeps(self, owner: type[GaussianDiffusion], *methods: str) -> bool:
        """Whether methods, and those that read the network, are the ones that a class has."""
        predictions = (
            "model_predictions", "predict_noise_from_start", "predict_start_from_noise", "predict_start_from_v",
        )  # fmt: skip
        return all(
            name not in vars(self) and getattr(type(self), name) is getattr(owner, name)
            for name in (*methods, *predictions)
        )

    def _has_its_buffers(self) -> bool:
        """Whether the buffers are those of the constructor; a file that was loaded may have others."""
        if self.betas.device != self._built["betas"].device:
            self._built = {name: value.to(self.betas.device) for name, value in self._built.items()}
        # Whether the loss is weighted does not matter here, and files differ in it.
        names = [name for name in self._built if name != "loss_weight"]
        return all(torch.equal(getattr(self, name), self._built[name]) for name in names)

    def _fused_step(
        self, x: Tensor, t: int, x_self_cond: Tensor | None, state: TableState, row: int
    ) -> tuple[Tensor, Tensor]:
        """One row of a table; the last draws nothing."""
        times = torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
        out = self.model(x, times, x_self_cond).contiguous()
        noise = torch.zeros_like(x) if row == len(state.table) - 1 else torch.randn_like(x)
        sample, pred = state.step(row, x.contiguous(), out, noise=noise, prediction=True)
        assert pred is not None
        return sample, pred

    def _state(self, build: Callable[..., CoefficientTable], **options: Any) -> TableState:
        """A sampler's table in execution, built once for its options."""
        key = (build.__name__, repr(options))
        if key not in self._tables:
            self._tables[key] = TableState(build(self.diffusion, **options))
        return self._tables[key]

    def noise_assignment(self, x_start: Tensor, noise: Tensor) -> Tensor:
        """Which noise goes to which image so that the sum of distances is least, int64 [B]."""
        try:
            from scipy.optimize import linear_sum_assignment
        except ImportError as error:
            raise RuntimeError(f"immiscible=True needs SciPy ({error}): pip install scipy") from error
        distances = torch.cdist(x_start.flatten(1), noise.flatten(1))
        _, chosen = linear_sum_assignment(distances.cpu())
        return torch.from_numpy(chosen).to(distances.device)

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t for images in [-1, 1] and t int64 [B]; the noise is drawn where it is not given."""
        noise = torch.randn_like(x_start) if noise is None else noise
        if self.immiscible:
            noise = noise[self.noise_assignment(x_start, noise)]
        signal = self._at("sqrt_alphas_cumprod", t, x_start)
        return signal * x_start + self._at("sqrt_one_minus_alphas_cumprod", t, x_start) * noise

    def p_losses(
        self,
        x_start: Tensor,
        t: Tensor,
        noise: Tensor | None = None,
        offset_noise_strength: float | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """The weighted squared error for images in [-1, 1] at t [B]: one number, or [B] with loss_reduction "none"."""
        noise = torch.randn_like(x_start) if noise is None else noise
        strength = self.offset_noise_strength if offset_noise_strength is None else offset_noise_strength
        if strength > 0:
            noise = noise + strength * torch.randn(x_start.shape[:2], device=self.device)[:, :, None, None]
        x = self.q_sample(x_start=x_start, t=t, noise=noise)
        x_self_cond = None
        if self.self_condition and random.random() < 0.5:
            with torch.no_grad():
                x_self_cond = self.model_predictions(x, t).pred_x_start
        out = self.model(x, t, x_self_cond)
        if self.objective == "pred_v":
            target = self.predict_v(x_start, t, noise)
        else:
            target = noise if self.objective == "pred_noise" else x_start
        loss = F.mse_loss(out, target, reduction="none").flatten(1).mean(dim=1)
        weights: Tensor = self.loss_weight[t]  # type: ignore[index]
        loss = loss * weights
        return loss if loss_reduction == "none" else loss.mean()

    def random_times(self, batch_size: int) -> Tensor:
        """Uniform timesteps, int64 [batch_size]."""
        return torch.randint(0, self.num_timesteps, (batch_size,), device=self.device).long()

    def forward(
        self,
        img: Tensor,
        *args: Any,
        times: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
        **kwargs: Any,
    ) -> Tensor:
        """The loss of images [B, C, H, W] in [0, 1], at random times or at `times`; see `p_losses`.

        Raises:
            ValueError: images of another size.
        """
        if tuple(img.shape[-2:]) != tuple(self.image_size):
            raise ValueError(f"height and width of image must be {self.image_size}, got {tuple(img.shape[-2:])}")
        times = self.random_times(img.shape[0]) if times is None else times
        return self.p_losses(self.normalize(img), times, *args, **{**kwargs, "loss_reduction": loss_reduction})


def _schedule(name: str, timesteps: int, options: Mapping[str, Any]) -> NoiseSchedule:
    known = {"linear": (), "cosine": ("s",), "sigmoid": ("start", "end", "tau", "clamp_min")}
    if name not in known:
        raise ValueError(f"unknown beta schedule {name}; it is one of {', '.join(known)}")
    check_keys(dict(options), known[name], f"schedule_fn_kwargs of {name!r}")
    if name == "linear":
        return NoiseSchedule.linear(timesteps)
    if name == "cosine":
        return NoiseSchedule.cosine(timesteps, **({"offset": options["s"]} if "s" in options else {}))
    # Theirs takes clamp_min and does not read it.
    return NoiseSchedule.sigmoid(timesteps, **{key: value for key, value in options.items() if key != "clamp_min"})


def _buffers(schedule: NoiseSchedule, objective: str, max_snr: float | None) -> dict[str, Any]:
    abar, noise = schedule.alphas_cumprod, schedule.one_minus_alphas_cumprod
    snr = abar / noise
    bounded = snr if max_snr is None else np.minimum(snr, max_snr)
    weight = {"pred_noise": bounded / snr, "pred_x0": bounded, "pred_v": bounded / (snr + 1)}[objective]
    return {
        "betas": schedule.betas,
        "alphas_cumprod": abar,
        "alphas_cumprod_prev": schedule.alphas_cumprod_prev,
        "sqrt_alphas_cumprod": np.sqrt(abar),
        "sqrt_one_minus_alphas_cumprod": np.sqrt(noise),
        "log_one_minus_alphas_cumprod": np.log(noise),
        "sqrt_recip_alphas_cumprod": np.sqrt(1 / abar),
        "sqrt_recipm1_alphas_cumprod": np.sqrt(noise / abar),
        "posterior_variance": schedule.posterior_variance,
        # Their floor, which at t = 0 is not the posterior's of t = 1.
        "posterior_log_variance_clipped": np.log(np.maximum(schedule.posterior_variance, 1e-20)),
        "posterior_mean_coef1": schedule.posterior_mean_coef1,
        "posterior_mean_coef2": schedule.posterior_mean_coef2,
        "loss_weight": weight,
    }
