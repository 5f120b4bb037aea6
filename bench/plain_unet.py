"""The U-Net of Ho et al. as one writes it in PyTorch, and a training step as one writes it: the peer of the digits."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets.config import UNetConfig


class _ResBlock(nn.Module):
    def __init__(self, in_channels: int, channels: int, emb_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(groups, in_channels, 1e-6), nn.GroupNorm(groups, channels, 1e-6)
        self.conv1 = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.emb = nn.Linear(emb_channels, channels)
        self.skip = nn.Identity() if in_channels == channels else nn.Conv2d(in_channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.emb(F.silu(emb))[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))  # type: ignore[no-any-return]


class _Attention(nn.Module):
    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels, 1e-6)
        self.qkv, self.proj = nn.Conv2d(channels, 3 * channels, 1), nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)
        h = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.proj(h.transpose(1, 2).reshape(x.shape))  # type: ignore[no-any-return]


class _Resample(nn.Module):
    def __init__(self, channels: int, scale: float) -> None:
        super().__init__()
        self.up = scale > 1
        self.conv = nn.Conv2d(channels, channels, 3, stride=1 if self.up else 2, padding=1 if self.up else 0)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2.0) if self.up else F.pad(x, (0, 1, 0, 1))
        return self.conv(x)  # type: ignore[no-any-return]


class PlainUNet(nn.Module):
    """The network of a configuration without labels, with one head, added time and convolutions to resample."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.channels, groups, emb = config.channels, config.norm_groups, 4 * config.channels
        self.time = nn.Sequential(nn.Linear(config.channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        def block(before: int, after: int, size: int) -> nn.ModuleList:
            attention = [_Attention(after, groups)] if size in config.attention_resolutions else []
            return nn.ModuleList([_ResBlock(before, after, emb, groups), *attention])

        widths, sizes = config.level_channels, config.level_sizes
        width, skips = widths[0], [widths[0]]
        self.first = nn.Conv2d(config.in_channels, width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        for level, after in enumerate(widths):
            for _ in range(config.num_res_blocks):
                self.down.append(block(width, after, sizes[level]))
                width = after
                skips.append(width)
            if level < len(widths) - 1:
                self.down.append(nn.ModuleList([_Resample(width, 0.5)]))
                skips.append(width)
        self.middle = nn.ModuleList(
            [_ResBlock(width, width, emb, groups), _Attention(width, groups), _ResBlock(width, width, emb, groups)]
        )
        for level in reversed(range(len(widths))):
            for i in range(config.num_res_blocks + 1):
                layers = block(width + skips.pop(), widths[level], sizes[level])
                width = widths[level]
                if level and i == config.num_res_blocks:
                    layers.append(_Resample(width, 2.0))
                self.up.append(layers)
        self.norm, self.last = nn.GroupNorm(groups, width, 1e-6), nn.Conv2d(width, config.out_channels, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x [B, C, H, W], t [B]."""
        half = self.channels // 2
        rates = torch.exp(-math.log(1e4) * torch.arange(half, device=x.device) / (half - 1))
        angles = t[:, None] * rates
        emb = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        h = self.first(x)
        skips = [h]
        for layers in self.down:
            for layer in layers:  # type: ignore[attr-defined]
                h = layer(h, emb)
            skips.append(h)
        for layer in self.middle:
            h = layer(h, emb)
        for layers in self.up:
            h = torch.cat([h, skips.pop()], dim=1)
            for layer in layers:  # type: ignore[attr-defined]
                h = layer(h, emb)
        return self.last(F.silu(self.norm(h)))  # type: ignore[no-any-return]


def plain_step(images: Tensor, batch: int, config: UNetConfig, levels: int) -> Callable[[], None]:
    """A step of DDPM's training: noise at random times, mean squared error, clipped AdamW, moving average."""
    unet = PlainUNet(config).train()
    average = [parameter.detach().clone() for parameter in unet.parameters()]
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=0.0)
    kept = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000), dim=0)

    def step() -> None:
        x0 = images[torch.randint(len(images), (batch,))].float() * (2 / (levels - 1)) - 1
        noise, t = torch.randn_like(x0), torch.randint(1000, (batch,))
        share = kept[t][:, None, None, None]
        x_t = share.sqrt() * x0 + (1 - share).sqrt() * noise
        optimizer.zero_grad()
        F.mse_loss(unet(x_t, t), noise).backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            for kept_value, parameter in zip(average, unet.parameters(), strict=True):
                kept_value.mul_(0.995).add_(parameter, alpha=0.005)

    return step
