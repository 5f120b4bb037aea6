"""improved-diffusion's networks: the constructors of its `UNetModel` and `SuperResModel`, and its attention."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.compat.guided_diffusion import layers
from fastdiff.compat.guided_diffusion import unet as guided
from fastdiff.compat.guided_diffusion._signatures import without_surplus
from fastdiff.compat.guided_diffusion.layers import (
    Downsample,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
)
from fastdiff.engine.families import register_alike

__all__ = [
    "AttentionBlock",
    "Downsample",
    "QKVAttention",
    "ResBlock",
    "SuperResModel",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "Upsample",
]

# Where the constructor is not told: the network takes images of any size.
_IMAGE_SIZE = 64


class UNetModel(guided.UNetModel):
    """The full U-Net with attention and a time embedding; see `guided_diffusion.unet.UNetModel`.

    Args:
        in_channels: Of the input.
        model_channels: Base width, that of the first convolution.
        out_channels: Of the output.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Rates of downsampling, such as {2, 4}, at which there is attention.
        dropout: Probability.
        channel_mult: Width of each level in units of the base; the first is 1.
        conv_resample: Resample with convolutions.
        dims: 2.
        num_classes: Labels, or None.
        use_checkpoint: Compute activations again in the backward pass, to save memory.
        num_heads: Attention heads.
        num_heads_upsample: As num_heads, or -1.
        use_scale_shift_norm: The embedding enters as scale and shift.
        image_size: Height and width that files of fastdiff's say; 64 if None. Their constructor does not have it.

    Raises:
        ValueError: settings that `fastdiff.UNet` does not have.
    """

    @without_surplus
    def __init__(
        self,
        in_channels: int,
        model_channels: int,
        out_channels: int,
        num_res_blocks: int,
        attention_resolutions: Iterable[int],
        dropout: float = 0,
        channel_mult: Iterable[float] = (1, 2, 4, 8),
        conv_resample: bool = True,
        dims: int = 2,
        num_classes: int | None = None,
        use_checkpoint: bool = False,
        num_heads: int = 1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        *,
        image_size: int | None = None,
    ) -> None:
        mults = tuple(channel_mult)
        if mults[0] != 1:
            raise ValueError(f"channel_mult must start with 1, the width of the first convolution, got {mults}")
        super().__init__(
            image_size or _IMAGE_SIZE,
            in_channels,
            model_channels,
            out_channels,
            num_res_blocks,
            attention_resolutions,
            dropout,
            mults,
            conv_resample,
            dims,
            num_classes,
            use_checkpoint,
            num_heads=num_heads,
            num_heads_upsample=num_heads_upsample,
            use_scale_shift_norm=use_scale_shift_norm,
        )

    @property
    def inner_dtype(self) -> torch.dtype:
        """The type of the blocks' convolutions."""
        return next(self.input_blocks.parameters()).dtype

    def get_feature_vectors(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> dict[str, Any]:
        """What each block makes of images [B, C, H, W] at times [B]: "down" and "up", lists, and "middle"."""
        self._check_inputs(x, timesteps, y)
        emb = self.embed(timesteps, y)
        h = x.to(self.inner_dtype)
        down, up = [], []
        for block in self.input_blocks:
            h = block(h, emb)
            down.append(h)
        h = middle = self.middle_block(h, emb)
        skips = list(down)
        for block in self.output_blocks:
            h = block(torch.cat((h, skips.pop()), dim=1), emb)
            up.append(h)
        return {
            "down": [value.to(x.dtype) for value in down],
            "middle": middle.to(x.dtype),
            "up": [value.to(x.dtype) for value in up],
        }


class SuperResModel(UNetModel):
    """A U-Net that is also given a small image, scaled up bilinearly. The constructor is that of `UNetModel`."""

    is_its_config = False

    def __init__(self, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(in_channels * 2, *args, **kwargs)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """As `UNetModel.forward`, with the small images [B, C, h, w].

        Raises:
            ValueError: they are missing.
        """
        return super().forward(_with_low_res(x, low_res), timesteps, y)

    def get_feature_vectors(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, y: Tensor | None = None
    ) -> dict[str, Any]:
        """As `UNetModel.get_feature_vectors`, with the small images [B, C, h, w]."""
        return super().get_feature_vectors(_with_low_res(x, low_res), timesteps, y)


register_alike(UNetModel)
register_alike(SuperResModel, low_res=True)


class QKVAttention(torch.nn.Module):
    """softmax(q k^T / sqrt(C)) v on packed [N, 3C, T], one head: to [N, C, T]."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.QKVAttention(1)

    def forward(self, qkv: Tensor) -> Tensor:
        """[N, 3C, T] to [N, C, T]."""
        y: Tensor = self.attention(qkv)
        return y

    @staticmethod
    def count_flops(model: Any, _x: Any, y: Any) -> None:
        """Add its products to `model.total_ops`, for the package thop."""
        layers.count_flops_attn(model, _x, y)


class AttentionBlock(layers.AttentionBlock):
    """Attention between all positions, added to its input; its qkv's rows are in the order head, (q k v), channel."""

    def __init__(self, channels: int, num_heads: int = 1, use_checkpoint: bool = False) -> None:
        super().__init__(channels, num_heads, use_checkpoint=use_checkpoint)


def _with_low_res(x: Tensor, low_res: Tensor | None) -> Tensor:
    if low_res is None:
        raise ValueError("a super-resolution network needs low_res, the small images")
    return torch.cat([x, F.interpolate(low_res, x.shape[2:], mode="bilinear").to(x.dtype)], dim=1)
