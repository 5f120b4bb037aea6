"""The downward half of the U-Net with a pooling at its end: OpenAI's classifier of noisy images."""

from __future__ import annotations

from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets.blocks import silu, timestep_embedding
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.encoder_pass import register_block, run_encoder
from fastdiff.nets.unet import UNet
from fastdiff.tensors import split_qkv

__all__ = ["POOLS", "AttentionPool2d", "EncoderUNet", "Pool"]

Pool = Literal["adaptive", "attention", "spatial", "spatial_v2"]
POOLS: tuple[Pool, ...] = get_args(Pool)


class AttentionPool2d(nn.Module):
    """Pooling by attention: the mean of all pixels asks all pixels. Source: CLIP, arXiv:2103.00020.

    Parameters: positional_embedding [C, S^2 + 1], qkv_proj and c_proj, convolutions of length 1.
    """

    def __init__(
        self, spacial_dim: int, embed_dim: int, num_heads_channels: int, output_dim: int | None = None
    ) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(embed_dim, spacial_dim**2 + 1) / embed_dim**0.5)
        self.qkv_proj = nn.Conv1d(embed_dim, 3 * embed_dim, 1)
        self.c_proj = nn.Conv1d(embed_dim, output_dim or embed_dim, 1)
        self.num_heads = embed_dim // num_heads_channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, S, S] to [B, output_dim]."""
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(dim=-1, keepdim=True), tokens], dim=-1)
        tokens = tokens + self.positional_embedding[None].to(x.dtype)
        q, k, v = split_qkv(self.qkv_proj(tokens).transpose(1, 2), self.num_heads, "new")
        h = F.scaled_dot_product_attention(q, k, v)
        y: Tensor = self.c_proj(h.transpose(2, 3).flatten(1, 2))
        return y[:, :, 0]


register_block(AttentionPool2d, ("num_heads",))


class EncoderUNet(nn.Module):
    """Noisy images and times to logits.

    In evaluation on the CPU it is one call of C++, and another one gives the gradient of the images
    (`fastdiff.nets.encoder_pass`), with the same bits for any batch and number of threads.

    Args:
        whole: Its downward half is taken, as it is.
        pool: "attention", "adaptive", "spatial" (the means of all blocks' features, and two layers) or "spatial_v2".
        head_channels: Channels of a head of the pool "attention".

    Raises:
        NotImplementedError: there is no such pool.
        ValueError: the pool "attention" without head_channels.

    Source: Dhariwal, Nichol (2021), arXiv:2105.05233, section 4.1.
    """

    def __init__(self, whole: UNet, pool: str, head_channels: int | None = None) -> None:
        super().__init__()
        if pool not in POOLS:
            raise NotImplementedError(f"unexpected {pool} pooling; it is one of {', '.join(POOLS)}")
        self.config: UNetConfig = whole.config
        self.pool = pool
        self.time_embed = whole.time_embed
        self.input_blocks = whole.input_blocks
        self.middle_block = whole.middle_block
        self.out = _pooling(pool, whole.config, head_channels, whole.config.out_channels)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Noisy images [B, C, H, W] and times [B] to logits [B, out_channels]."""
        if not self.training:
            whole = run_encoder(self, x, timesteps, lambda image: self.by_modules(image, timesteps), self.parameters())
            if whole is not None:
                return whole
        return self.by_modules(x, timesteps)

    def by_modules(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """The same, module by module."""
        dtype = cast(nn.Linear, self.time_embed[0]).weight.dtype
        emb = self.embed(timestep_embedding(timesteps, self.config.channels, self.config.time_embedding).to(dtype))
        h = x.to(next(self.input_blocks.parameters()).dtype)
        means = []
        for block in [*self.input_blocks, self.middle_block]:
            h = block(h, emb)
            means.append(h.to(x.dtype).mean(dim=(2, 3)))
        features = torch.cat(means, dim=1) if self.pool.startswith("spatial") else h.to(x.dtype)
        y: Tensor = self.out(features.to(dtype))
        return y.to(x.dtype)

    def embed(self, waves: Tensor) -> Tensor:
        """What the blocks see of the embedded times [B, channels], [B, 4 * channels]."""
        return silu(self.time_embed(waves))


def _pooling(pool: str, config: UNetConfig, head_channels: int | None, out_channels: int) -> nn.Module:
    widths = config.level_channels
    last = widths[-1]
    norm = nn.GroupNorm(config.groups(last), last, eps=config.norm_eps)
    if pool == "adaptive":
        conv = nn.Conv2d(last, out_channels, 1)
        for parameter in conv.parameters():
            nn.init.zeros_(parameter)
        return nn.Sequential(norm, nn.SiLU(), nn.AdaptiveAvgPool2d((1, 1)), conv, nn.Flatten())
    if pool == "attention":
        if head_channels is None:
            raise ValueError("pool='attention' needs num_head_channels")
        size = config.level_sizes[-1]
        return nn.Sequential(norm, nn.SiLU(), AttentionPool2d(size, last, head_channels, out_channels))
    # The first block, the residual blocks and the downsampling of each level, and the middle.
    num_features = widths[0] + last + sum(width * config.num_res_blocks for width in widths) + sum(widths[:-1])
    hidden = nn.Linear(num_features, 2048)
    if pool == "spatial":
        return nn.Sequential(hidden, nn.ReLU(), nn.Linear(2048, out_channels))
    norm = nn.GroupNorm(config.norm_groups, 2048, eps=config.norm_eps)
    return nn.Sequential(hidden, norm, nn.SiLU(), nn.Linear(2048, out_channels))
