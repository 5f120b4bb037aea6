"""`UNetModel`, `SuperResModel` and `EncoderUNetModel`: their constructors and state-dict names on `fastdiff.UNet`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.compat.guided_diffusion._signatures import parameter, with_parameters, without_surplus
from fastdiff.compat.guided_diffusion.fp16_util import convert_module_to_f16, convert_module_to_f32
from fastdiff.compat.guided_diffusion.layers import (
    AttentionBlock,
    Downsample,
    QKVAttention,
    QKVAttentionLegacy,
    ResBlock,
    TimestepBlock,
    TimestepEmbedSequential,
    Upsample,
    count_flops_attn,
)
from fastdiff.compat.guided_diffusion.nn import (
    avg_pool_nd,
    checkpoint,
    conv_nd,
    linear,
    normalization,
    timestep_embedding,
    zero_module,
)
from fastdiff.convert.layouts import Entry, layout_entries
from fastdiff.engine.families import register_alike
from fastdiff.engine.lower import computes_as
from fastdiff.nets import unet as networks
from fastdiff.nets.config import UNetConfig
from fastdiff.nets.encoder import AttentionPool2d, EncoderUNet
from fastdiff.nets.encoder_pass import register_block
from fastdiff.nets.unet import UNet

__all__ = [
    "AttentionBlock",
    "AttentionPool2d",
    "Downsample",
    "EncoderUNetModel",
    "QKVAttention",
    "QKVAttentionLegacy",
    "ResBlock",
    "SuperResModel",
    "TimestepBlock",
    "TimestepEmbedSequential",
    "UNetModel",
    "Upsample",
    "avg_pool_nd",
    "checkpoint",
    "conv_nd",
    "convert_module_to_f16",
    "convert_module_to_f32",
    "count_flops_attn",
    "linear",
    "normalization",
    "timestep_embedding",
    "zero_module",
]


class _Convertible(nn.Module):
    """A network whose type changes by these names."""

    def convert_to_fp16(self) -> None:
        """Make the convolutions and attention of the blocks float16. Norms, what the times and labels pass through
        and the last layers stay float32, as theirs.
        """
        self._apply_to_blocks(convert_module_to_f16)

    def convert_to_fp32(self) -> None:
        """Make them float32 again."""
        self._apply_to_blocks(convert_module_to_f32)

    def _apply_to_blocks(self, convert: Callable[[nn.Module], None]) -> None:
        for name in ("input_blocks", "middle_block", "output_blocks"):
            if hasattr(self, name):
                getattr(self, name).apply(convert)


class _Block(networks.Block):
    """Layers that are given the embedding without its SiLU, as theirs are, by whoever walks through the blocks."""

    def _run(self, x: Tensor, emb: Tensor) -> Tensor:
        return super()._run(x, F.silu(emb))


class UNetModel(UNet, _Convertible):
    """The full U-Net with attention and a time embedding.

    It is a `fastdiff.UNet`, so that `fastdiff.sample` and `Pipeline` take it. Its `state_dict` has OpenAI's names, and
    `load_state_dict` takes those and fastdiff's. Its parts are called as theirs are: blocks with features and
    `time_embed`'s result, then `out`.

    Args:
        image_size: Height and width of the images.
        in_channels: Of the input.
        model_channels: Base width.
        out_channels: Of the output.
        num_res_blocks: Residual blocks per level.
        attention_resolutions: Rates of downsampling, such as {2, 4}, at which there is attention.
        dropout: Probability.
        channel_mult: Width of each level in units of the base.
        conv_resample: Resample with convolutions.
        dims: 2.
        num_classes: Labels, or None.
        use_checkpoint: Compute activations again in the backward pass, to save memory.
        use_fp16: The type of the network after `convert_to_fp16`; nothing changes before.
        num_heads: Attention heads.
        num_head_channels: Channels per head, which wins over num_heads; -1 for none.
        num_heads_upsample: As num_heads, or -1.
        use_scale_shift_norm: The embedding enters as scale and shift.
        resblock_updown: Residual blocks resample.
        use_new_attention_order: Rows of the packed qkv are (q k v), head, channel instead of head, (q k v), channel.

    Raises:
        ValueError: settings that `fastdiff.UNet` does not have.
    """

    @without_surplus
    def __init__(
        self,
        image_size: int,
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
        use_fp16: bool = False,
        num_heads: int = 1,
        num_head_channels: int = -1,
        num_heads_upsample: int = -1,
        use_scale_shift_norm: bool = False,
        resblock_updown: bool = False,
        use_new_attention_order: bool = False,
    ) -> None:
        if dims != 2:
            raise ValueError(f"fastdiff has networks for images: dims must be 2, got {dims}")
        if num_head_channels == -1 and num_heads_upsample not in (-1, num_heads):
            raise ValueError(f"num_heads_upsample must equal num_heads={num_heads}, got {num_heads_upsample}")
        mults = tuple(channel_mult)
        random_state = torch.get_rng_state()
        # Rates of downsampling; those that no level has are passed over, as they do.
        rates = [rate for rate in attention_resolutions if rate in {1 << level for level in range(len(mults))}]
        super().__init__(
            UNetConfig(
                image_size=image_size,
                in_channels=in_channels,
                out_channels=out_channels,
                channels=model_channels,
                channel_mult=mults,
                num_res_blocks=num_res_blocks,
                attention_resolutions=tuple(image_size // rate for rate in rates),
                dropout=dropout,
                num_heads=num_heads,
                head_channels=None if num_head_channels == -1 else num_head_channels,
                norm_groups=32,
                norm_eps=1e-5,
                time_embedding="cos_sin",
                downsample_padding="symmetric",
                scale_shift_norm=use_scale_shift_norm,
                resblock_updown=resblock_updown,
                conv_resample=conv_resample,
                num_classes=num_classes,
                qkv_layout="new" if use_new_attention_order else "legacy",
            )
        )
        _draw_weights((self,), random_state)
        for block in (*self.input_blocks, self.middle_block, *self.output_blocks):
            block.__class__ = _Block
        self.image_size = image_size
        self.in_channels = in_channels
        self.model_channels = model_channels
        self.out_channels = out_channels
        self.num_res_blocks = num_res_blocks
        self.attention_resolutions = attention_resolutions
        self.dropout = dropout
        self.channel_mult = channel_mult
        self.conv_resample = conv_resample
        self.num_classes = num_classes
        self.use_checkpoint = use_checkpoint
        self.num_heads = num_heads
        self.num_head_channels = num_head_channels
        self.num_heads_upsample = num_heads if num_heads_upsample == -1 else num_heads_upsample
        self.dtype = torch.float16 if use_fp16 else torch.float32
        if use_checkpoint:
            _recompute_blocks(self)
        _use_openai_names(self)

    @property
    def out(self) -> nn.Sequential:
        """The last layers: a norm with its SiLU, nothing, and a convolution."""
        return nn.Sequential(self.norm_out, nn.Identity(), self.conv_out)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "out":
            raise AttributeError("the last layers of this network are norm_out and conv_out: replace those, not out")
        super().__setattr__(name, value)

    def embed(self, t: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Embedding [B, 4 * model_channels] of times [B] and labels [B]; the blocks apply the SiLU."""
        return self._embed_linearly(t, y)

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:  # type: ignore[override]
        """Images [B, C, H, W], times [B] and labels [B] to [B, out_channels, H, W], in the type of x."""
        return super().forward(x, timesteps, y).to(x.dtype)


class SuperResModel(UNetModel):
    """A U-Net that is also given a small image, scaled up bilinearly. The constructor is that of `UNetModel`."""

    is_its_config = False

    def __init__(self, image_size: int, in_channels: int, *args: Any, **kwargs: Any) -> None:
        super().__init__(image_size, in_channels * 2, *args, **kwargs)

    def forward(  # type: ignore[override]
        self, x: Tensor, timesteps: Tensor, low_res: Tensor | None = None, y: Tensor | None = None
    ) -> Tensor:
        """As `UNetModel.forward`, with the small images [B, C, h, w].

        Raises:
            ValueError: they are missing.
        """
        if low_res is None:
            raise ValueError("a super-resolution network needs low_res, the small images")
        large = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, large.to(x.dtype)], dim=1), timesteps, y)


computes_as(_Block, networks.Block)
register_block(_Block)
register_alike(UNetModel)
register_alike(SuperResModel, low_res=True)


_ENCODER_PARAMETERS = [p for p in inspect.signature(UNetModel.__init__).parameters.values() if p.name != "num_classes"]
_ENCODER_PARAMETERS.append(parameter("pool", "adaptive", "adaptive"))


class EncoderUNetModel(EncoderUNet, _Convertible):
    """The downward half of the U-Net with a pooling at its end: a classifier of noisy images.

    Arguments as `UNetModel`'s, and `pool`: "attention", "adaptive", "spatial" or "spatial_v2". State-dict names are
    OpenAI's. In evaluation on the CPU logits and the gradient of the images are a call each of C++
    (`fastdiff.nets.encoder.EncoderUNet`).
    """

    @with_parameters(_ENCODER_PARAMETERS)
    def __init__(self, *, pool: str, **arguments: Any) -> None:
        random_state = torch.get_rng_state()
        # The upward half is left behind here.
        whole = UNetModel(**arguments)
        _draw_weights((whole.time_embed, whole.input_blocks, whole.middle_block), random_state)
        head_channels = arguments["num_head_channels"]
        super().__init__(whole, pool, None if head_channels == -1 else head_channels)
        self.dtype = whole.dtype
        self.in_channels = whole.in_channels
        self.model_channels = whole.model_channels
        self.out_channels = whole.out_channels
        _use_openai_names(self)

    def embed(self, waves: Tensor) -> Tensor:
        """The blocks apply the SiLU."""
        emb: Tensor = self.time_embed(waves)
        return emb


@torch.no_grad()
def _draw_weights(parts: Iterable[nn.Module], random_state: Tensor) -> None:
    """Draw the weights as OpenAI's networks draw theirs, so that a seed gives the same network: PyTorch's own rule for
    each layer, in the order of construction, and zeros where a residual branch and the network end.
    """
    torch.set_rng_state(random_state)
    modules = [module for part in parts for module in part.modules()]
    for module in modules:
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding):
            layout = module.weight
            # The numbers would land on other weights in channels_last.
            module.weight = nn.Parameter(torch.empty_like(layout, memory_format=torch.contiguous_format))
            module.reset_parameters()
            layout.copy_(module.weight)
            module.weight = cast(nn.Parameter, layout)
    for module in modules:
        last: nn.Module | None = None
        if isinstance(module, networks.ResBlock):
            last = module.conv2
        elif isinstance(module, networks.AttentionBlock):
            last = module.proj
        elif isinstance(module, UNet):
            last = module.conv_out
        if last is not None:
            zero_module(last)


def _recompute_blocks(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, networks.Block):
            module.recompute = True


def _use_openai_names(model: nn.Module) -> None:
    """Give a module's state dict OpenAI's names and shapes, and let it load those or its own."""
    model.register_state_dict_post_hook(_write_openai_names)
    model.register_load_state_dict_pre_hook(_read_openai_names)


# Functions of the module that they are called with, so that a copy or a pickle of it has them as well.
def _write_openai_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, metadata: Any) -> None:
    entries = {prefix + entry.ours: entry for entry in _entries(module)}
    # Each one is taken out and put back, so that they keep their order.
    for name in list(state):
        value, entry = state.pop(name), entries.get(name)
        if entry is None:
            state[name] = value
        else:
            state[prefix + entry.theirs[0]] = value[(..., *[None] * entry.trailing)]


def _read_openai_names(module: nn.Module, state: MutableMapping[str, Any], prefix: str, *_: Any) -> None:
    for entry in _entries(module):
        name = prefix + entry.theirs[0]
        if name in state and name != prefix + entry.ours:
            value = state.pop(name)
            state[prefix + entry.ours] = value.flatten(1) if entry.trailing else value
        elif name in state and entry.trailing and state[name].dim() == 3:
            state[name] = state[name].flatten(1)


def _entries(module: nn.Module) -> list[Entry]:
    """Tensors of a network, or of the part of it that a classifier has, which has its own module "out"."""
    entries = layout_entries(cast(UNetConfig, module.config), "openai")
    parts = ("time_embed.", "input_blocks.", "middle_block.")
    return [entry for entry in entries if isinstance(module, UNet) or entry.ours.startswith(parts)]
