"""The U-Net of Ho (2020), improved- and guided-diffusion, Song (2021) and EDM, in one class.

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

Each name ends in .weight or .bias, except label_emb, which has only .weight. Song's and EDM's networks may have
time_freqs [n], augment_emb.weight and pyramid.k, the convolution that joins the block behind level k, besides;
`fastdiff.convert.edm` has their names.
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
    PyramidConv,
    Resample,
    ResBlock,
    SiLU,
    Upsample,
    fourier_embedding,
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
    Dhariwal, Nichol (2021), arXiv:2105.05233; Song et al. (2021), arXiv:2011.13456; Karras et al. (2022),
    arXiv:2206.00364.
    """

    is_its_config = True
    """Whether the configuration says all that the network computes; a subclass that adds to it says False."""

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        emb_channels = 4 * config.channels
        # A parameter, so that whoever looks for changes of a network sees it; it is not trained.
        freqs = nn.Parameter(torch.empty(config.waves // 2), requires_grad=False)
        self.time_freqs = freqs if config.time_embedding == "fourier" else None
        self.time_embed = nn.Sequential(Linear(config.waves, emb_channels), SiLU(), Linear(emb_channels, emb_channels))
        label_channels = emb_channels if config.label_place == "behind_mlp" else config.waves
        self.label_emb = None if config.num_classes is None else nn.Embedding(config.num_classes, label_channels)
        self.augment_emb = None
        if config.augment_channels is not None:
            self.augment_emb = nn.Linear(config.augment_channels, config.waves, bias=False)

        widths = config.level_channels
        has_attention = [size in config.attention_resolutions for size in config.level_sizes]
        last = len(widths) - 1
        width = config.stem_width
        self.input_blocks = nn.ModuleList([Block([Conv3x3(config.in_channels, width)])])
        skip_widths = [width]
        # By the number of the input block that it joins, as text.
        self.pyramid = nn.ModuleDict() if config.input_pyramid else None
        pyramid_width = config.in_channels
        for level, out_width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, out_width)]
                width = out_width
                if has_attention[level]:
                    layers.append(self._attention(width))
                self.input_blocks.append(Block(layers))
                skip_widths.append(width)
            if level != last:
                if self.pyramid is not None:
                    conv = PyramidConv(pyramid_width, width, config.resample_filter)
                    self.pyramid[str(len(self.input_blocks))] = conv
                    pyramid_width = width
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
                if has_attention[level] and (config.decoder_attention == "all" or i == config.num_res_blocks):
                    layers.append(self._attention(width))
                if level and i == config.num_res_blocks:
                    layers.append(self._upsample(width))
                self.output_blocks.append(Block(layers))

        self.norm_out = GroupNormAct(width, config.groups(width), config.norm_eps)
        self.conv_out = Conv3x3(width, config.out_channels)
        self._init_parameters()
        nn.utils.convert_conv2d_weight_memory_format(self, torch.channels_last)

    def embed(self, t: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Embedding of time and label with its SiLU applied, which is all that the blocks see of them.

        Args:
            t: Times [B].
            y: Labels [B], or None where the network has none.
            augment: Augmentation labels [B, augment_channels], or None.

        Returns:
            Embedding [B, 4 * channels].
        """
        # Each residual block takes the SiLU of the same embedding, so it is computed once.
        return silu(self._embed_linearly(t, y, augment))

    def waves(self, t: Tensor, y: Tensor | None = None) -> Tensor:
        """What the first layer of the embedding is given of times [B], and of labels that enter there, [B, waves].

        In float32 at least.
        """
        wide = torch.promote_types(self.conv_out.weight.dtype, torch.float32)
        if self.time_freqs is not None:
            waves = fourier_embedding(t, self.time_freqs.to(wide))
        else:
            waves = timestep_embedding(t, self.config.waves, self.config.time_embedding, dtype=wide)
        if self.label_emb is not None and self.config.label_place == "before_mlp":
            waves = waves + self.label_emb(y).to(wide)
        return waves

    def _embed_linearly(self, t: Tensor, y: Tensor | None, augment: Tensor | None = None) -> Tensor:
        """`embed` without the SiLU."""
        dtype = self.conv_out.weight.dtype
        waves = self.waves(t, y).to(dtype)
        if self.augment_emb is not None and augment is not None:
            waves = waves + self.augment_emb(augment.to(dtype))
        emb: Tensor = self.time_embed(waves)
        if self.label_emb is not None and self.config.label_place == "behind_mlp":
            emb = emb + self.label_emb(y)
        return emb

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None, augment: Tensor | None = None) -> Tensor:
        """Evaluate the network.

        Args:
            x: Noisy images [B, in_channels, H, W], floating, H and W divisible by 2^(levels - 1). Converted to the
                type of the parameters.
            t: Times [B] in network timesteps, int64 or float32 (int32 and float64 are taken too).
            y: Labels [B] in [0, num_classes), int64, for a network with labels; None for one without.
            augment: Augmentation labels [B, augment_channels] for a network that was trained with them; None for images
                as they are.

        Returns:
            Output [B, out_channels, H, W], channels_last, in the type of the parameters or of autocast. Blocks may
            have a narrower type than the layers around them: features have that of the first convolution.

        Raises:
            TypeError: An argument is not a tensor.
            ValueError: An argument has the wrong shape, type or device, or labels are missing, surplus or, on the
                CPU, out of range. (On CUDA the embedding's own device-side check reports them: no synchronisation.)
        """
        self._check_inputs(x, t, y)
        self._check_augment(x, augment)
        if self.training and type(self) is UNet and not self.config.of_song:
            label_emb = self.label_emb
            whole = train_as_one(self, x, t, None if label_emb is None else lambda: label_emb(y))
            if whole is not None:
                return whole
        emb = self.embed(t, y) if augment is None else self.embed(t, y, augment)
        inner, outer = cast(nn.Conv2d, cast(Block, self.input_blocks[0])[0]).weight.dtype, self.conv_out.weight.dtype
        h = x.to(inner).contiguous(memory_format=torch.channels_last)
        skips: list[Tensor] = []
        level = h
        for number, block in enumerate(self.input_blocks):
            h = block(h, emb)
            if self.pyramid is not None and str(number) in self.pyramid:
                level = h = (h + self.pyramid[str(number)](level)) * self.config.skip_scale
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

    def _check_augment(self, x: Tensor, augment: Tensor | None) -> None:
        if augment is None:
            return
        if self.config.augment_channels is None:
            raise ValueError(
                "this network has no augmentation labels, got augment; leave it out or set augment_channels"
            )
        expected = [x.shape[0], self.config.augment_channels]
        if list(augment.shape) != expected:
            raise ValueError(f"augment must have shape {expected}, got {list(augment.shape)}")

    def _res_block(self, in_channels: int, out_channels: int, resample: Resample = "none") -> ResBlock:
        config = self.config
        return ResBlock(
            in_channels,
            out_channels,
            4 * config.channels,
            groups=config.groups,
            eps=config.norm_eps,
            dropout=config.dropout,
            scale_shift=config.scale_shift_norm,
            resample=resample,
            taps=config.resample_filter,
            projection=config.resample_projection,
            skip_scale=config.skip_scale,
        )

    def _attention(self, channels: int) -> AttentionBlock:
        config = self.config
        return AttentionBlock(
            channels,
            config.heads(channels),
            groups=config.groups(channels),
            eps=config.norm_eps,
            layout=config.qkv_layout,
            skip_scale=config.skip_scale,
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
        if self.time_freqs is not None:
            # Song et al. (2021), appendix H.
            nn.init.normal_(self.time_freqs, std=16.0)


def num_parameters(config: UNetConfig) -> int:
    """Number of parameters of `UNet(config)`, counted on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in UNet(config).parameters())
