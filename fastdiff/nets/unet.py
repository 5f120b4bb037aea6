"""The U-Net of Ho (2020), improved-diffusion and guided-diffusion, in one class.

The modules (`fastdiff.nets.blocks`) are PyTorch's, with fused ops for norm, attention and, in training on the CPU,
convolution and dropout. They are laid out flat so that the engine can lower them one by one: every group norm with its
SiLU and its scale and shift is one `GroupNormAct`, every block one `ResBlock`, `AttentionBlock`, `Downsample` or
`Upsample`, and what depends on time alone is `UNet.embed`.

Parameter names, and those of an OpenAI state dict (the number j counts the layers of block i):

| here | OpenAI |
|---|---|
| time_embed.{0,2}, label_emb | the same |
| input_blocks.0.0 (a convolution) | the same |
| {input,output}_blocks.i.j, middle_block.j | the same prefix |
| ResBlock: norm1, conv1, emb_proj | in_layers.{0,2}, emb_layers.1 |
| ResBlock: norm2, conv2, skip | out_layers.{0,3}, skip_connection |
| AttentionBlock: norm, qkv [3C, C], proj [C, C] | norm, qkv [3C, C, 1], proj_out [C, C, 1] |
| Downsample: conv; Upsample: conv | op; conv |
| norm_out, conv_out | out.{0,2} |

Each name ends in .weight or .bias, except label_emb, which has only .weight.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn

from fastdiff.nets.blocks import (
    AttentionBlock,
    Block,
    Conv3x3,
    Downsample,
    GroupNormAct,
    Linear,
    Resample,
    ResBlock,
    SiLU,
    Upsample,
    silu,
    timestep_embedding,
)
from fastdiff.nets.config import PRESETS, UNetConfig
from fastdiff.nets.training_pass import forget_activations, train_as_one

__all__ = [
    "PRESETS",
    "AttentionBlock",
    "Block",
    "Conv3x3",
    "Downsample",
    "GroupNormAct",
    "ResBlock",
    "UNet",
    "UNetConfig",
    "Upsample",
    "num_parameters",
    "timestep_embedding",
]

_TIME_DTYPES = (torch.int64, torch.int32, torch.float32, torch.float64)
_LABEL_DTYPES = (torch.int64, torch.int32)


class UNet(nn.Module):
    """The denoising network: an image and its time in, eps (or x0, v, score, with or without a variance) out.

    `input_blocks`, `middle_block` and `output_blocks` hold `Block`s in the order in which they run. The output of
    each input block is kept, and each output block takes the latest one left, concatenated behind its input.
    The module's own page says how parameters are named. They are channels_last in memory.

    Args:
        config: Shape and conventions; see `UNetConfig` and `UNetConfig.preset`.

    Source: Ho (2020), arXiv:2006.11239, appendix B; Nichol, Dhariwal (2021), arXiv:2102.09672;
    Dhariwal, Nichol (2021), arXiv:2105.05233.
    """

    is_its_config = True
    """Whether the configuration says all that the network computes; a subclass that adds to it says False."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb_channels = 4 * config.channels
        self.time_embed = nn.Sequential(
            Linear(config.channels, emb_channels), SiLU(), Linear(emb_channels, emb_channels)
        )
        self.label_emb = None if config.num_classes is None else nn.Embedding(config.num_classes, emb_channels)

        widths = config.level_channels
        has_attention = [size in config.attention_resolutions for size in config.level_sizes]
        last = len(widths) - 1
        width = widths[0]
        self.input_blocks = nn.ModuleList([Block([Conv3x3(config.in_channels, width)])])
        skip_widths = [width]
        for level, out_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, out_width)]
                width = out_width
                if has_attention[level]:
                    layers.append(self._attention(width))
                self.input_blocks.append(Block(layers))
                skip_widths.append(width)
            if level != last:
                self.input_blocks.append(Block([self._downsample(width)]))
                skip_widths.append(width)

        self.middle_block = Block(
            [self._res_block(width, width), self._attention(width), self._res_block(width, width)]
        )

        self.output_blocks = nn.ModuleList()
        for level in range(last, -1, -1):
            for i in range(config.num_res_blocks + 1):
                layers = [self._res_block(width + skip_widths.pop(), widths[level])]
                width = widths[level]
                if has_attention[level]:
                    layers.append(self._attention(width))
                if level and i == config.num_res_blocks:
                    layers.append(self._upsample(width))
                self.output_blocks.append(Block(layers))

        self.norm_out = GroupNormAct(width, config.norm_groups, config.norm_eps)
        self.conv_out = Conv3x3(width, config.out_channels)
        self._init_parameters()
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Embedding of time and label with its SiLU applied, which is all that the blocks see of them.

        Args:
            t: Times [B].
            y: Labels [B], or None where the network has none.

        Returns:
            Embedding [B, 4 * channels].
        """
        # Each residual block takes the SiLU of the same embedding, so it is computed once.
        return silu(self._embed_linearly(t, y))

    def _embed_linearly(self, t: Tensor, y: Tensor | None) -> Tensor:
        """`embed` without the SiLU."""
        dtype = self.conv_out.weight.dtype
        wide = torch.promote_types(dtype, torch.float32)
        waves = timestep_embedding(t, self.config.channels, self.config.time_embedding, dtype=wide)
        emb: Tensor = self.time_embed(waves.to(dtype))
        if self.label_emb is not None:
            emb = emb + self.label_emb(y)
        return emb

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: Noisy images [B, in_channels, H, W], floating, H and W divisible by 2^(levels - 1). Converted to the
                type of the parameters.
            t: Times [B] in network timesteps, int64 or float32 (int32 and float64 are taken too).
            y: Labels [B] in [0, num_classes), int64, for a network with labels; None for one without.

        Returns:
            Output [B, out_channels, H, W], channels_last, in the type of the parameters or of autocast. Blocks may
            have a narrower type than the layers around them: features have that of the first convolution.

        Raises:
            TypeError: An argument is not a tensor.
            ValueError: An argument has the wrong shape, type or device, or labels are missing, surplus or, on the
                CPU, out of range. (On CUDA the embedding's own device-side check reports them: no synchronisation.)
        """
        self._check_inputs(x, t, y)
        if self.training and type(self) is UNet:
            label_emb = self.label_emb
            whole = train_as_one(self, x, t, None if label_emb is None else lambda: label_emb(y))
            if whole is not None:
                return whole
        emb = self.embed(t, y)
        inner, outer = cast(nn.Conv2d, cast(Block, self.input_blocks[0])[0]).weight.dtype, self.conv_out.weight.dtype
        h = x.to(inner).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            h = block(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat((h, skips.pop()), dim=1), emb)
        if inner != outer:
            h = h.to(outer)
        out: Tensor = self.conv_out(self.norm_out(h))
        return out.contiguous(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> UNet:
        """As PyTorch's; in evaluation the memory that training keeps between its steps is given back."""
        if not mode:
            forget_activations(self)
        return super().train(mode)

    def _check_inputs(self, x: Tensor, t: Tensor, y: Tensor | None) -> None:
        config = self.config
        divisor = config.size_divisor
        for name, value in (("x", x), ("t", t), ("y", y)):
            if not isinstance(value, Tensor) and not (name == "y" and value is None):
                raise TypeError(f"{name} must be a tensor, one entry per image, got {type(value).__name__}")
        if x.dim() != 4 or x.shape[1] != config.in_channels:
            raise ValueError(f"x must have shape [B, {config.in_channels}, H, W], got {list(x.shape)}")
        if x.shape[2] % divisor or x.shape[3] % divisor or x.shape[2] == 0 or x.shape[3] == 0:
            raise ValueError(
                f"height and width of x must be positive multiples of {divisor} for {len(config.channel_mult)} levels, "
                f"got {x.shape[2]} x {x.shape[3]}; pad or crop the image"
            )
        if not x.is_floating_point():
            raise ValueError(f"x must be floating, got {x.dtype}; scale images to [-1, 1] first")
        if t.shape != x.shape[:1]:
            raise ValueError(f"t must have shape [{x.shape[0]}], one time per image, got {list(t.shape)}")
        if t.dtype not in _TIME_DTYPES:
            # bfloat16 cannot tell t = 999 from t = 1000.
            raise ValueError(f"t must be int64 or float32, got {t.dtype}; convert it")
        if t.device != x.device:
            raise ValueError(f"t must be on the device of x, {x.device}, got {t.device}; move it")
        if config.num_classes is None:
            if y is not None:
                raise ValueError("this network has no labels, got y; leave it out or set num_classes")
            return
        if y is None:
            raise ValueError(f"this network needs labels y in [0, {config.num_classes}), got None")
        if y.shape != x.shape[:1]:
            raise ValueError(f"y must have shape [{x.shape[0]}], one label per image, got {list(y.shape)}")
        if y.dtype not in _LABEL_DTYPES:
            raise ValueError(f"y must be int64, got {y.dtype}; convert it")
        if y.device != x.device:
            raise ValueError(f"y must be on the device of x, {x.device}, got {y.device}; move it")
        # Reading values would make CUDA wait, and would break a compiled graph in two.
        readable = y.device.type == "cpu" and y.numel() > 0 and not torch.compiler.is_compiling()
        if readable and not 0 <= int(y.min()) <= int(y.max()) < config.num_classes:
            raise ValueError(f"y must lie in [0, {config.num_classes}), got {int(y.min())} to {int(y.max())}")

    def _res_block(self, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
        config = self.config
        return ResBlock(
            in_channels,
            out_channels,
            4 * config.channels,
            groups=config.norm_groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.scale_shift_norm,
            resample=resample,
        )

    def _attention(self, channels: int) -> AttentionBlock:
        config = self.config
        return AttentionBlock(
            channels,
            config.heads(channels),
            groups=config.norm_groups,
            eps=config.norm_eps,
            layout=config.qkv_layout,
        )

    def _downsample(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self._res_block(channels, channels, "down")
        return Downsample(channels, use_conv=self.config.conv_resample, padding=self.config.downsample_padding)

    def _upsample(self, channels: int) -> nn.Module:
        if self.config.resblock_updown:
            return self._res_block(channels, channels, "up")
        return Upsample(channels, use_conv=self.config.conv_resample)

    def _init_parameters(self) -> None:
        # Ho's variance scaling (fan_avg, uniform, scale 1: Xavier's uniform) with zero biases, for all three papers:
        # the authors chose it (diffusion_tf/nn.py of their code), while OpenAI's is PyTorch's default, which keeps a
        # third of the variance in every layer and draws the biases. The last layer of every residual branch and of
        # the network starts at zero in all three, so a fresh network predicts 0. Label embeddings: N(0, 1), as OpenAI.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ResBlock):
                nn.init.zeros_(module.conv2.weight)
            elif isinstance(module, AttentionBlock):
                # q, k and v are three layers of C inputs and C outputs.
                bound = math.sqrt(6 / (2 * module.qkv.in_features))
                nn.init.uniform_(module.qkv.weight, -bound, bound)
                nn.init.zeros_(module.proj.weight)
        nn.init.zeros_(self.conv_out.weight)


def num_parameters(config: UNetConfig) -> int:
    """Number of parameters of `UNet(config)`, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(config).parameters())
