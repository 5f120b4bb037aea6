"""lucidrains' `ElucidatedDiffusion`, EDM's process and sampler, on coefficient tables."""

from __future__ import annotations

import math
import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff import samplers
from fastdiff.compat.levels import Levels, variance_exploding
from fastdiff.ops.table_state import TableState
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array, NoiseSchedule
from fastdiff.process.table import DEFAULTS, CoefficientTable
from fastdiff.samplers.two_stage_method import MAX_CHURN
from fastdiff.tensors import per_sample

__all__ = ["ElucidatedDiffusion"]


class ElucidatedDiffusion(nn.Module):
    """A preconditioned network with EDM's process: called with images it gives the loss, `sample` gives images.

    Noise is drawn from PyTorch's generator in their order, so that a seed gives the images it gives there.

    Args:
        net: A network that is given log(sigma) / 4, with random or learned frequencies.
        image_size: Height and width.
        channels: Of the images.
        num_sample_steps: Levels of `sample`, of two evaluations each.
        sigma_min, sigma_max, rho: The levels.
        sigma_data: Standard deviation of the data.
        P_mean, P_std: Of ln sigma in training.
        S_churn, S_tmin, S_tmax, S_noise: Of the sampler's noise.

    Raises:
        ValueError: a network that does not fit.

    Source: Karras et al. (2022), arXiv:2206.00364, algorithm 2 and table 1.
    """

    def __init__(
        self,
        net: nn.Module,
        *,
        image_size: int,
        channels: int = 3,
        num_sample_steps: int = 32,
        sigma_min: float = 0.002,
        sigma_max: float = 80,
        sigma_data: float = 0.5,
        rho: float = 7,
        P_mean: float = -1.2,
        P_std: float = 1.2,
        S_churn: float = 80,
        S_tmin: float = 0.05,
        S_tmax: float = 50,
        S_noise: float = 1.003,
    ) -> None:
        super().__init__()
        if not getattr(net, "random_or_learned_sinusoidal_cond", False):
            raise ValueError(
                "the network is given log(sigma) / 4: make it with learned_sinusoidal_cond=True, or random"
            )
        self.self_condition = bool(getattr(net, "self_condition", False))
        self.net = net
        self.channels, self.image_size, self.num_sample_steps = channels, image_size, num_sample_steps
        self.sigma_min, self.sigma_max, self.sigma_data, self.rho = sigma_min, sigma_max, sigma_data, rho
        self.P_mean, self.P_std = P_mean, P_std
        self.S_churn, self.S_tmin, self.S_tmax, self.S_noise = S_churn, S_tmin, S_tmax, S_noise

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.net.parameters()).device

    @property
    def diffusion(self) -> Diffusion:
        """The process on 1000 levels, for fastdiff's own samplers and likelihoods."""
        schedule = NoiseSchedule.edm(1000, self.sigma_min, self.sigma_max, self.rho)
        return Diffusion(schedule, "F", sigma_data=self.sigma_data)

    def c_skip(self, sigma: Tensor) -> Tensor:
        """Of the noisy image in the denoised one."""
        return self.sigma_data**2 / (sigma**2 + self.sigma_data**2)

    def c_out(self, sigma: Tensor) -> Tensor:
        """Of the network's output in the denoised image."""
        return sigma * self.sigma_data * (self.sigma_data**2 + sigma**2) ** -0.5

    def c_in(self, sigma: Tensor) -> Tensor:
        """Of the noisy image in the network's input."""
        return (sigma**2 + self.sigma_data**2) ** -0.5

    def c_noise(self, sigma: Tensor) -> Tensor:
        """What the network is given for sigma."""
        return torch.log(sigma.clamp(min=1e-20)) * 0.25

    def preconditioned_network_forward(
        self, noised_images: Tensor, sigma: Tensor | float, self_cond: Tensor | None = None, clamp: bool = False
    ) -> Tensor:
        """The denoised images D(x; sigma) for images [B, C, H, W] and one sigma or [B]."""
        if isinstance(sigma, float):
            sigma = torch.full((noised_images.shape[0],), sigma, device=noised_images.device)
        padded = per_sample(sigma, noised_images)
        output = self.net(self.c_in(padded) * noised_images, self.c_noise(sigma), self_cond)
        denoised: Tensor = self.c_skip(padded) * noised_images + self.c_out(padded) * output
        return denoised.clamp(-1.0, 1.0) if clamp else denoised

    def sample_schedule(self, num_sample_steps: int | None = None) -> Tensor:
        """Levels sigma, noisiest first, and 0; [N + 1]."""
        count = self.num_sample_steps if num_sample_steps is None else num_sample_steps
        steps = torch.arange(count, device=self.device, dtype=torch.float32)
        high, low = self.sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return F.pad((high + steps / (count - 1) * (low - high)) ** self.rho, (0, 1), value=0.0)

    @torch.no_grad()
    def sample(self, batch_size: int = 16, num_sample_steps: int | None = None, clamp: bool = True) -> Tensor:
        """Images [batch_size, C, H, W] in [0, 1], by EDM's stochastic sampler; `clamp` bounds each denoised image."""
        sigmas = self.sample_schedule(num_sample_steps).double().cpu().numpy()
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        images = torch.randn(shape, device=self.device) * float(sigmas[0])
        return self._run(self._stochastic_table(sigmas, 1.0 if clamp else math.inf), images)

    @torch.no_grad()
    def sample_using_dpmpp(self, batch_size: int = 16, num_sample_steps: int | None = None) -> Tensor:
        """Images [batch_size, C, H, W] in [0, 1], by DPM-Solver++(2M)."""
        sigmas = self.sample_schedule(num_sample_steps).double().cpu().numpy()
        levels = Levels.from_sigmas(sigmas, "F")
        diffusion = Diffusion(levels.diffusion.schedule, "F", sigma_data=self.sigma_data)
        table = samplers.dpmpp(
            diffusion, timesteps=levels.timesteps, final=levels.final, clip=None, lower_order_final=False
        )
        exploding = variance_exploding(table)
        columns = {**exploding.columns, "t": np.log(sigmas[:-1]) / 4}
        shape = (batch_size, self.channels, self.image_size, self.image_size)
        images = torch.randn(shape, device=self.device) * float(sigmas[0])
        return self._run(CoefficientTable(columns, "dpmpp"), images, conditioned=False)

    def _run(self, table: CoefficientTable, x: Tensor, *, conditioned: bool = True) -> Tensor:
        state, start = TableState(table), None
        for row in range(len(table)):
            if not state.evaluates[row]:
                x, _ = state.step(row, x, None, noise=torch.randn_like(x))
                continue
            given = start if self.self_condition and conditioned else None
            output = self.net(*state.network_input(row, x), given).contiguous()
            x, start = state.step(row, x, output, noise=torch.zeros_like(x), prediction=True)
        return (x.clamp(-1.0, 1.0) + 1) * 0.5

    def _stochastic_table(self, sigmas: Array, bound: float) -> CoefficientTable:
        """Three rows a step: noise, Euler, and the second half of Heun's; two for the last.

        Theirs draws noise for every step, also where none is added.
        """
        gamma = min(self.S_churn / (len(sigmas) - 1), MAX_CHURN)
        rows: list[dict[str, float]] = []
        for sigma, sigma_next in zip(sigmas[:-1].tolist(), sigmas[1:].tolist(), strict=True):
            raised = sigma * (1 + gamma) if self.S_tmin <= sigma <= self.S_tmax else sigma
            added = self.S_noise * math.sqrt(raised**2 - sigma**2)
            rows.append({"t": 0.0, "evaluate": 0.0, "cx": 1.0, "s": added})
            share = sigma_next / raised
            first = {"cx": share, "c0": 1 - share, "push": 1.0, "save_base": 1.0, "bx": 1.0}
            rows.append(self._evaluation(raised, bound) | first)
            if sigma_next > 0:
                half = 0.5 * (sigma_next - raised)
                second = {"cb": 1 + half / raised, "c1": -half / raised, "cx": half / sigma_next}
                rows.append(self._evaluation(sigma_next, bound) | second | {"c0": -half / sigma_next})
        names = dict.fromkeys(name for row in rows for name in row)
        return CoefficientTable({name: [row.get(name, DEFAULTS[name]) for row in rows] for name in names}, "edm")

    def _evaluation(self, sigma: float, bound: float) -> dict[str, float]:
        total = sigma**2 + self.sigma_data**2
        return {
            "t": math.log(sigma) / 4, "ci": total**-0.5, "px": self.sigma_data**2 / total,
            "pm": sigma * self.sigma_data * total**-0.5, "clip": bound,
        }  # fmt: skip

    def loss_weight(self, sigma: Tensor) -> Tensor:
        """1 / c_out^2."""
        return (sigma**2 + self.sigma_data**2) * (sigma * self.sigma_data) ** -2

    def noise_distribution(self, batch_size: int) -> Tensor:
        """Levels for training, [batch_size]."""
        return (self.P_mean + self.P_std * torch.randn((batch_size,), device=self.device)).exp()

    def forward(
        self, images: Tensor, *args: object, sigma: Tensor | None = None, loss_reduction: str = "mean", **kwargs: object
    ) -> Tensor:
        """The loss of images [B, C, H, W] in [0, 1]: one number, or [B] with loss_reduction="none".

        Raises:
            ValueError: images of another size.
        """
        expected = [self.channels, self.image_size, self.image_size]
        if list(images.shape[1:]) != expected:
            raise ValueError(
                f"images must be [B, {expected[0]}, {expected[1]}, {expected[2]}], got {list(images.shape)}"
            )
        images = images * 2 - 1
        sigmas = self.noise_distribution(images.shape[0]) if sigma is None else sigma
        noised = images + per_sample(sigmas, images) * torch.randn_like(images)
        self_cond = None
        if self.self_condition and random.random() < 0.5:
            with torch.no_grad():
                self_cond = self.preconditioned_network_forward(noised, sigmas).detach()
        denoised = self.preconditioned_network_forward(noised, sigmas, self_cond)
        losses = F.mse_loss(denoised, images, reduction="none").flatten(1).mean(dim=1) * self.loss_weight(sigmas)
        return losses if loss_reduction == "none" else losses.mean()
