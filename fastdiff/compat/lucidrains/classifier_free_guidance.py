"""`denoising_diffusion_pytorch.classifier_free_guidance`: the process of a network with classes, guided by them."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import samplers
from fastdiff.compat.absent import explained
from fastdiff.compat.lucidrains import diffusion as unguided
from fastdiff.compat.lucidrains.diffusion import ModelPrediction
from fastdiff.ops.table_state import TableState

__all__ = ["GaussianDiffusion", "ModelPrediction"]

__getattr__ = explained(
    __name__, {"Unet": "take denoising_diffusion_pytorch.classifier_free_guidance.Unet; see docs/migration.md"}
)


class GaussianDiffusion(unguided.GaussianDiffusion):  # type: ignore[misc]
    """A network of classes with its process: called with images and classes it gives the loss, `sample` gives images.

    It takes lucidrains' `Unet` of classes, and any module with `channels`, `out_dim` and `cond_drop_prob` that is
    called as model(x, t, classes) and has `forward_with_cond_scale`. A seed gives the images and the losses that it
    gives there; a step is a row of a table, but for those of CFG++. `cond_scale=1` samples without guidance, where
    theirs fails.

    Args:
        model: The network; as many channels out as in.
        use_cfg_plus_plus: DDIM steps along the noise that the network sees without a class.
        image_size, timesteps, sampling_timesteps, objective, beta_schedule, ddim_sampling_eta, offset_noise_strength,
            min_snr_loss_weight, min_snr_gamma: As `fastdiff.compat.lucidrains.GaussianDiffusion`.

    Raises:
        ValueError: arguments out of range, or a network that does not fit.

    Source: Ho and Salimans (2022), arXiv:2207.12598; Chung et al. (2024), arXiv:2406.08070, for CFG++; Lin et al.
    (2023), arXiv:2305.08891, section 3.4, for `rescaled_phi`.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        timesteps: int = 1000,
        sampling_timesteps: int | None = None,
        objective: str = "pred_noise",
        beta_schedule: str = "cosine",
        ddim_sampling_eta: float = 1.0,
        offset_noise_strength: float = 0.0,
        min_snr_loss_weight: bool = False,
        min_snr_gamma: float = 5,
        use_cfg_plus_plus: bool = False,
    ) -> None:
        super().__init__(
            model,
            image_size=image_size,
            timesteps=timesteps,
            sampling_timesteps=sampling_timesteps,
            objective=objective,
            beta_schedule=beta_schedule,
            ddim_sampling_eta=ddim_sampling_eta,
            offset_noise_strength=offset_noise_strength,
            min_snr_loss_weight=min_snr_loss_weight,
            min_snr_gamma=min_snr_gamma,
        )
        out_dim = getattr(model, "out_dim", self.channels)
        if out_dim != self.channels:
            raise ValueError(f"the network must have as many channels out as in, got {out_dim} for {self.channels}")
        self.use_cfg_plus_plus = use_cfg_plus_plus

    def random_cond_keep_mask(self, batch_size: int) -> Tensor:
        """Which samples keep their class, bool [batch_size], by the network's `cond_drop_prob`."""
        keep = 1.0 - float(self.model.cond_drop_prob)  # type: ignore[arg-type]
        if keep in (0.0, 1.0):
            return torch.full((batch_size,), keep == 1.0, device=self.device)
        return torch.zeros(batch_size, device=self.device).uniform_(0, 1) < keep

    def xm_shared_random_kwargs(self, batch_size: int) -> dict[str, Tensor]:
        """What the candidates of their Forward XM share."""
        return {"cond_keep_mask": self.random_cond_keep_mask(batch_size)}

    def _guided(
        self, x: Tensor, t: Tensor, classes: Tensor, cond_scale: float, rescaled_phi: float
    ) -> tuple[Tensor, Tensor]:
        """The guided output, and that without a class."""
        out = self.model.forward_with_cond_scale(  # type: ignore[operator]
            x, t, classes, cond_scale=cond_scale, rescaled_phi=rescaled_phi
        )
        if isinstance(out, tuple):
            return out
        # Without guidance it is the output alone.
        return out, self.model(x, t, classes, cond_drop_prob=1.0) if self.use_cfg_plus_plus else out

    def model_predictions(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        clip_x_start: bool = False,
    ) -> ModelPrediction:
        """The noise and the image that the guided network sees in x [B, ...] at t [B] for classes int64 [B]."""
        out, null = self._guided(x, t, classes, cond_scale, rescaled_phi)
        start = self._image(x, t, out, clip_x_start)
        along = null if self.use_cfg_plus_plus else out
        if self.objective == "pred_noise":
            return ModelPrediction(along, start)
        seen = self._image(x, t, null, clip_x_start) if self.use_cfg_plus_plus else start
        return ModelPrediction(self.predict_noise_from_start(x, t, seen), start)

    def _image(self, x: Tensor, t: Tensor, out: Tensor, clip: bool) -> Tensor:
        if self.objective == "pred_noise":
            start = self.predict_start_from_noise(x, t, out)
        else:
            start = out if self.objective == "pred_x0" else self.predict_start_from_v(x, t, out)
        return start.clamp(-1.0, 1.0) if clip else start

    def p_mean_variance(  # type: ignore[override]
        self,
        x: Tensor,
        t: Tensor,
        classes: Tensor,
        cond_scale: float,
        rescaled_phi: float,
        clip_denoised: bool = True,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Mean, variance and log-variance of the reverse step, and the predicted image."""
        start = self.model_predictions(x, t, classes, cond_scale, rescaled_phi).pred_x_start
        start = start.clamp(-1.0, 1.0) if clip_denoised else start
        return *self.q_posterior(x_start=start, x_t=x, t=t), start

    @torch.no_grad()
    def p_sample(  # type: ignore[override]
        self,
        x: Tensor,
        t: int,
        classes: Tensor,
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        clip_denoised: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """x_{t-1} and the predicted image."""
        if self._keeps(GaussianDiffusion, "p_mean_variance", "q_posterior") and self._has_its_buffers():
            state = self._state(samplers.ddpm, clip=1.0 if clip_denoised else None)
            return self._row(x, t, (classes, cond_scale, rescaled_phi), state, self.num_timesteps - 1 - t)
        times = torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
        mean, _, log_variance, start = self.p_mean_variance(x, times, classes, cond_scale, rescaled_phi, clip_denoised)
        noise = torch.randn_like(x) if t > 0 else torch.zeros_like(x)
        return mean + (0.5 * log_variance).exp() * noise, start

    def _row(
        self, x: Tensor, t: int, guidance: tuple[Tensor, float, float], state: TableState, row: int
    ) -> tuple[Tensor, Tensor]:
        """One row of a table; the last draws nothing."""
        times = torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
        out, _ = self._guided(x, times, *guidance)
        noise = torch.zeros_like(x) if row == len(state.table) - 1 else torch.randn_like(x)
        sample, pred = state.step(row, x.contiguous(), out.contiguous(), noise=noise, prediction=True)
        assert pred is not None
        return sample, pred

    @torch.no_grad()
    def p_sample_loop(  # type: ignore[override]
        self, classes: Tensor, shape: tuple[int, ...], cond_scale: float = 6.0, rescaled_phi: float = 0.7
    ) -> Tensor:
        """Images of `shape` by the ancestral process."""

        def step(x: Tensor, _: Tensor | None, t: int) -> tuple[Tensor, Tensor]:
            return self.p_sample(x, t, classes, cond_scale, rescaled_phi)

        return self._loop(step, shape, range(self.num_timesteps - 1, -1, -1), False)

    @torch.no_grad()
    def ddim_sample(  # type: ignore[override]
        self,
        classes: Tensor,
        shape: tuple[int, ...],
        cond_scale: float = 6.0,
        rescaled_phi: float = 0.7,
        clip_denoised: bool = True,
    ) -> Tensor:
        """Images of `shape` by DDIM."""
        # float32, as theirs: where a time falls on a whole number, rounding decides.
        grid = torch.linspace(-1, self.num_timesteps - 1, steps=self.sampling_timesteps + 1).int().tolist()
        times = sorted(set(grid[1:]))
        eta = float(self.ddim_sampling_eta)
        state = None
        if not self.use_cfg_plus_plus and self._keeps(GaussianDiffusion) and self._has_its_buffers():
            kept: dict[str, Any] = {"clipped_eps": "keep"} if self.objective == "pred_noise" else {}
            clip = 1.0 if clip_denoised else None
            state = self._state(samplers.ddim, timesteps=times, eta=eta, clip=clip, **kept)

        def step(x: Tensor, _: Tensor | None, row: int) -> tuple[Tensor, Tensor]:
            t = times[-1 - row]
            if state is not None:
                return self._row(x, t, (classes, cond_scale, rescaled_phi), state, row)
            at = torch.full((x.shape[0],), t, device=x.device, dtype=torch.int64)
            eps, start = self.model_predictions(x, at, classes, cond_scale, rescaled_phi, clip_x_start=clip_denoised)
            if row + 1 == len(times):
                return start, start
            abar, abar_next = self.alphas_cumprod[t], self.alphas_cumprod[times[-2 - row]]
            sigma = eta * ((1 - abar / abar_next) * (1 - abar_next) / (1 - abar)).sqrt()
            mean = start * abar_next.sqrt() + (1 - abar_next - sigma**2).sqrt() * eps
            return mean + sigma * torch.randn_like(x), start

        return self._loop(step, shape, range(len(times)), False)

    @torch.no_grad()
    def sample(  # type: ignore[override]
        self, classes: Tensor, cond_scale: float = 6.0, rescaled_phi: float = 0.7
    ) -> Tensor:
        """Images [B, C, H, W] in [0, 1] of classes int64 [B]."""
        loop = self.ddim_sample if self.is_ddim_sampling else self.p_sample_loop
        return loop(classes, (classes.shape[0], self.channels, *self.image_size), cond_scale, rescaled_phi)

    @torch.no_grad()
    def interpolate(  # type: ignore[override]
        self, x1: Tensor, x2: Tensor, classes: Tensor, t: int | None = None, lam: float = 0.5
    ) -> Tensor:
        """Noise two batches of images (in [-1, 1]) to time t, mix them, and take the noise away again by classes."""
        if x1.shape != x2.shape:
            raise ValueError(f"x1 and x2 must have one shape, got {list(x1.shape)} and {list(x2.shape)}")
        t = self.num_timesteps - 1 if t is None else t
        times = torch.full((x1.shape[0],), t, device=x1.device)
        image = (1 - lam) * self.q_sample(x1, times) + lam * self.q_sample(x2, times)
        for i in range(t - 1, -1, -1):
            image, _ = self.p_sample(image, i, classes)
        return image

    def _offset(self, noise: Tensor) -> Tensor:
        if self.offset_noise_strength > 0:
            noise = (
                noise + self.offset_noise_strength * torch.randn(noise.shape[:2], device=self.device)[..., None, None]
            )
        return noise

    def q_sample(self, x_start: Tensor, t: Tensor, noise: Tensor | None = None) -> Tensor:
        """x_t for images in [-1, 1] and t int64 [B], with the offset's noise."""
        return super().q_sample(x_start, t, self._offset(torch.randn_like(x_start) if noise is None else noise))

    def p_losses(  # type: ignore[override]
        self,
        x_start: Tensor,
        t: Tensor,
        *,
        classes: Tensor,
        noise: Tensor | None = None,
        cond_keep_mask: Tensor | None = None,
        loss_reduction: str = "mean",
    ) -> Tensor:
        """The weighted squared error for images in [-1, 1] of classes int64 [B] at t [B].

        Classes are dropped by the network, or where `cond_keep_mask`, bool [B], is False.

        Returns:
            One number, or [B] with loss_reduction "none".
        """
        noise = self._offset(torch.randn_like(x_start) if noise is None else noise)
        x = super().q_sample(x_start, t, noise)
        out = self.model(x, t, classes, **({} if cond_keep_mask is None else {"cond_keep_mask": cond_keep_mask}))
        if self.objective == "pred_v":
            target = self.predict_v(x_start, t, noise)
        else:
            target = noise if self.objective == "pred_noise" else x_start
        loss = F.mse_loss(out, target, reduction="none").flatten(1).mean(dim=1)
        weights: Tensor = self.loss_weight[t]  # type: ignore[index]
        loss = loss * weights
        return loss if loss_reduction == "none" else loss.mean()

    def forward(  # type: ignore[override]
        self,
        img: Tensor,
        *args: Any,
        times: Tensor | None = None,
        cond_keep_mask: Tensor | None = None,
        loss_reduction: Literal["mean", "none"] = "mean",
        **kwargs: Any,
    ) -> Tensor:
        """The loss of images [B, C, H, W] in [0, 1] and their `classes`, at random times or at `times`; see `p_losses`.

        Raises:
            ValueError: images of another size.
        """
        kwargs |= {"cond_keep_mask": cond_keep_mask}
        return super().forward(img, *args, times=times, loss_reduction=loss_reduction, **kwargs)
