"""The networks of the GPU suite: ours, and its peer.

The peer is diffusers' UNet2DModel of the same shape, or, where diffusers is missing, fastdiff's own module with
PyTorch's group norm and attention, which the results then say.
"""

from __future__ import annotations

import functools
import importlib.util
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.nets.unet import GroupNormAct

HO = "ho-cifar10"
ADM = "adm-imagenet64"
DIFFUSERS_HO = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
DIFFUSERS_QUICK = DIFFUSERS_HO | {
    "sample_size": 8,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
QUICK = fd.UNetConfig(
    image_size=8, channels=16, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)


class PlainNorm(nn.Module):
    """A `GroupNormAct` by PyTorch's own kernels, for the peer without diffusers."""

    def __init__(self, norm: GroupNormAct) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.act = norm.groups, norm.eps, norm.act

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        x = x if added is None else x + added[:, :, None, None]
        h = F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if scale is not None and shift is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h) if self.act else h


class Networks:
    """Builds the arms, each once, in channels_last memory.

    Args:
        device: Where.
        quick: A tiny network in the place of the preset.
        preset: Its name.

    Attributes:
        dtype: What is measured: bfloat16 on a GPU.
        peer_name: In words.
    """

    def __init__(self, device: torch.device, quick: bool, preset: str = HO) -> None:
        self.device, self.quick, self.preset = device, quick, preset
        self.config = QUICK if quick else fd.UNetConfig.preset(preset)
        # diffusers has no network of ADM's kind.
        self.has_diffusers = preset == HO and importlib.util.find_spec("diffusers") is not None
        peer = "diffusers UNet2DModel" if self.has_diffusers else "fastdiff's module with PyTorch's norm and attention"
        self.peer_name = f"{peer}, channels_last"
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16
        # The peers' best settings.
        torch.backends.cudnn.benchmark = True
        self.ours = functools.cache(self._ours)
        self.peer = functools.cache(self._peer)

    def fresh(self, dtype: torch.dtype | None = None) -> fd.UNet:
        """A network of random weights everywhere, the same ones at every call."""
        torch.manual_seed(0)
        with torch.device(self.device):
            unet = fd.UNet(self.config)
            with torch.no_grad():
                for parameter in unet.parameters():
                    if parameter.ndim > 1 and not parameter.any():
                        parameter.normal_(std=0.02)
        unet = unet.to(dtype or self.dtype, memory_format=torch.channels_last)
        return unet.eval()

    def _ours(self, dtype: torch.dtype | None = None) -> fd.UNet:
        return self.fresh(dtype)

    def _peer(self, dtype: torch.dtype | None = None) -> nn.Module:
        return self.fresh_peer(dtype)

    def fresh_peer(self, dtype: torch.dtype | None = None) -> nn.Module:
        """A network of the same shape by its own means."""
        model: nn.Module
        if self.has_diffusers:
            import diffusers

            torch.manual_seed(0)
            with torch.device(self.device):
                model = diffusers.UNet2DModel(**(DIFFUSERS_QUICK if self.quick else DIFFUSERS_HO))
        else:
            model = with_plain_norms(self.fresh(torch.float32))
        return model.to(self.device, dtype or self.dtype, memory_format=torch.channels_last).eval()

    def plain(self) -> nn.Module:
        """Our weights by PyTorch's norms: whose error the gates allow twice."""
        return with_plain_norms(self.fresh())

    def call(self, model: Any, x: Tensor, t: Tensor) -> Tensor:
        """The output as a tensor of x's channels, whichever the network."""
        y = model(x, t)
        return y if isinstance(y, Tensor) else y.sample

    def inputs(self, batch: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """A state in channels_last memory, and times."""
        size = self.config.image_size
        generator = torch.Generator(self.device).manual_seed(0)
        x = torch.randn((batch, 3, size, size), generator=generator, device=self.device).to(dtype or self.dtype)
        return x.contiguous(memory_format=torch.channels_last), torch.full((batch,), 500, device=self.device)

    def labels(self, batch: int) -> dict[str, Tensor]:
        """What else the network is given."""
        if self.config.num_classes is None:
            return {}
        return {"y": torch.arange(batch, device=self.device) % self.config.num_classes}

    @functools.cached_property
    def flops(self) -> float:
        """Of one sample and evaluation."""
        from torch.utils.flop_counter import FlopCounterMode

        x, t = torch.randn(1, 3, *(self.config.image_size,) * 2, device="meta"), torch.zeros(1, device="meta")
        with torch.device("meta"):
            model = with_plain_norms(fd.UNet(self.config))
        labels = {name: value.to("meta") for name, value in self.labels(1).items()}
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            model(x, t, **labels)
        return float(counter.get_total_flops())

    @functools.cached_property
    def weight_bytes(self) -> int:
        """Which every evaluation reads at least."""
        return sum(p.numel() for p in self.ours().parameters()) * self.dtype.itemsize


def with_plain_norms(model: nn.Module) -> nn.Module:
    """The network with PyTorch's norms in place of the op, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNormAct):
                setattr(module, name, PlainNorm(child))
    return model


def diffusion() -> fd.Diffusion:
    """What all of them are sampled by."""
    return fd.Diffusion(fd.NoiseSchedule.linear(1000))


def small_table(steps: int) -> Any:
    """DDIM, which draws no noise."""
    return fd.samplers.ddim(diffusion(), steps, spacing="leading")


def noise(networks: Networks, batch: int) -> Tensor:
    """A state in float32 to start from."""
    return networks.inputs(batch, torch.float32)[0].contiguous()
