"""A double of OpenAI's network, which cannot be installed: the module structure of improved- and guided-diffusion.

Written after the published code's structure: names, order of calls, types. Only what `fd.accelerate` has to know.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class GroupNorm32(nn.GroupNorm):
    def forward(self, x):
        return super().forward(x.float()).type(x.dtype)


class TimestepBlock(nn.Module):
    pass


class TimestepEmbedSequential(nn.Sequential, TimestepBlock):
    def forward(self, x, emb):
        for layer in self:
            x = layer(x, emb) if isinstance(layer, TimestepBlock) else layer(x)
        return x


class Downsample(nn.Module):
    def forward(self, x):
        return F.avg_pool2d(x, 2)


class ResBlock(TimestepBlock):
    def __init__(self, channels, emb_channels, out_channels, use_scale_shift_norm=False, down=False):
        super().__init__()
        self.use_scale_shift_norm = use_scale_shift_norm
        self.in_layers = nn.Sequential(
            GroupNorm32(4, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.updown = down
        self.h_upd, self.x_upd = (Downsample(), Downsample()) if down else (nn.Identity(), nn.Identity())
        width = 2 * out_channels if use_scale_shift_norm else out_channels
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, width))
        self.out_layers = nn.Sequential(
            GroupNorm32(4, out_channels),
            nn.SiLU(),
            nn.Dropout(0.1),
            zero_module(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        same = channels == out_channels
        self.skip_connection = nn.Identity() if same else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x, emb):
        return self._forward(x, emb)

    def _forward(self, x, emb):
        if self.updown:
            in_rest, in_conv = self.in_layers[:-1], self.in_layers[-1]
            h = in_rest(x)
            h = self.h_upd(h)
            x = self.x_upd(x)
            h = in_conv(h)
        else:
            h = self.in_layers(x)
        emb_out = self.emb_layers(emb).type(h.dtype)
        while len(emb_out.shape) < len(h.shape):
            emb_out = emb_out[..., None]
        if self.use_scale_shift_norm:
            out_norm, out_rest = self.out_layers[0], self.out_layers[1:]
            scale, shift = torch.chunk(emb_out, 2, dim=1)
            h = out_norm(h) * (1 + scale) + shift
            h = out_rest(h)
        else:
            h = h + emb_out
            h = self.out_layers(h)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """`attention` is one of the three below; improved-diffusion's sees heads as samples."""

    def __init__(self, channels, num_heads, attention):
        super().__init__()
        self.num_heads = num_heads
        self.norm = GroupNorm32(4, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.attention = attention
        self.proj_out = zero_module(nn.Conv1d(channels, channels, 1))

    def forward(self, x):
        b, c, *spatial = x.shape
        x = x.reshape(b, c, -1)
        qkv = self.qkv(self.norm(x))
        if not hasattr(self.attention, "n_heads"):
            qkv = qkv.reshape(b * self.num_heads, -1, qkv.shape[2])
        h = self.attention(qkv).reshape(b, c, -1)
        return (x + self.proj_out(h)).reshape(b, c, *spatial)


def attend(q, k, v):
    scale = 1 / math.sqrt(math.sqrt(q.shape[1]))
    weight = torch.einsum("bct,bcs->bts", q * scale, k * scale)
    weight = torch.softmax(weight.float(), dim=-1).type(weight.dtype)
    return torch.einsum("bts,bcs->bct", weight, v)


class QKVAttentionLegacy(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = qkv.reshape(bs * self.n_heads, ch * 3, length).split(ch, dim=1)
        return attend(q, k, v).reshape(bs, -1, length)


class QKVAttention(nn.Module):
    def __init__(self, n_heads):
        super().__init__()
        self.n_heads = n_heads

    def forward(self, qkv):
        bs, width, length = qkv.shape
        ch = width // (3 * self.n_heads)
        q, k, v = (part.reshape(bs * self.n_heads, ch, length) for part in qkv.chunk(3, dim=1))
        return attend(q, k, v).reshape(bs, -1, length)


def _improved_forward(self, qkv):
    return attend(*torch.split(qkv, qkv.shape[1] // 3, dim=1))


ImprovedQKVAttention = type("QKVAttention", (nn.Module,), {"forward": _improved_forward, "__module__": __name__})
# Pickled by name, so under a name that finds it.
ImprovedQKVAttention.__qualname__ = "ImprovedQKVAttention"


def zero_module(module):
    for p in module.parameters():
        p.detach().zero_()
    return module


class UNetModel(nn.Module):
    def __init__(self, attention=None, use_scale_shift_norm=False, channels=8):
        super().__init__()
        emb = 16
        self.time_embed = nn.Sequential(nn.Linear(1, emb), nn.SiLU(), nn.Linear(emb, emb))
        wide, options = 2 * channels, {"use_scale_shift_norm": use_scale_shift_norm}
        self.input_blocks = nn.ModuleList(
            [
                TimestepEmbedSequential(nn.Conv2d(3, channels, 3, padding=1)),
                TimestepEmbedSequential(
                    ResBlock(channels, emb, wide, **options),
                    AttentionBlock(wide, 2, attention or QKVAttentionLegacy(2)),
                ),
                TimestepEmbedSequential(ResBlock(wide, emb, wide, down=True, **options)),
            ]
        )
        self.middle_block = TimestepEmbedSequential(ResBlock(wide, emb, channels, **options))
        self.out = nn.Sequential(GroupNorm32(4, channels), nn.SiLU(), zero_module(nn.Conv2d(channels, 3, 3, padding=1)))

    def forward(self, x, timesteps):
        emb = self.time_embed(timesteps[:, None].float() / 1000)
        h = x
        for block in self.input_blocks:
            h = block(h, emb)
        return self.out(self.middle_block(h, emb))


class Up(nn.Module):
    """OpenAI's Upsample."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x):
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class Down(nn.Module):
    """OpenAI's Downsample with a convolution."""

    def __init__(self, channels):
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x):
        return self.op(x)


def whole(attention=QKVAttention, num_classes=None, use_scale_shift_norm=True, channels=16):
    """Their UNetModel of two levels with attention at the lower one."""
    return Whole(attention, num_classes, use_scale_shift_norm, channels)


def super_res():
    """Their SuperResModel, likewise."""
    return SuperRes(QKVAttention, None, True, 16, 6)


class Whole(nn.Module):
    def __init__(self, attention, num_classes, use_scale_shift_norm, channels, channels_in=3):
        super().__init__()
        emb, wide, options = 4 * channels, 2 * channels, {"use_scale_shift_norm": use_scale_shift_norm}
        self.model_channels, self.num_classes, self.image_size = channels, num_classes, 16
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, emb)

        def attend():
            return AttentionBlock(wide, 2, attention(2))

        def res(before, after):
            return ResBlock(before, emb, after, **options)

        blocks = (
            [nn.Conv2d(channels_in, channels, 3, padding=1)], [res(channels, channels)], [Down(channels)],
            [res(channels, wide), attend()],
        )  # fmt: skip
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)
        self.middle_block = TimestepEmbedSequential(res(wide, wide), attend(), res(wide, wide))
        blocks = (
            [res(2 * wide, wide), attend()], [res(wide + channels, wide), attend(), Up(wide)],
            [res(wide + channels, channels)], [res(2 * channels, channels)],
        )  # fmt: skip
        self.output_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)
        self.out = nn.Sequential(GroupNorm32(4, channels), nn.SiLU(), nn.Conv2d(channels, 3, 3, padding=1))

    def forward(self, x, timesteps, y=None):
        half = self.model_channels // 2
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        if self.num_classes is not None:
            emb = emb + self.label_emb(y)
        kept, h = [], x
        for block in self.input_blocks:
            h = block(h, emb)
            kept.append(h)
        h = self.middle_block(h, emb)
        for block in self.output_blocks:
            h = block(torch.cat([h, kept.pop()], dim=1), emb)
        return self.out(h)


class SuperRes(Whole):
    def forward(self, x, timesteps, low_res=None, **kwargs):
        upsampled = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, upsampled], dim=1), timesteps, **kwargs)


class AttentionPool2d(nn.Module):
    def __init__(self, size, channels, head_channels, out):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, out, 1)
        self.num_heads = channels // head_channels
        self.attention = QKVAttention(self.num_heads)

    def forward(self, x):
        b, c, *_ = x.shape
        x = x.reshape(b, c, -1)
        x = torch.cat([x.mean(dim=-1, keepdim=True), x], dim=-1)
        x = x + self.positional_embedding[None, :, :].to(x.dtype)
        x = self.c_proj(self.attention(self.qkv_proj(x)))
        return x[:, :, 0]


class Encoder(nn.Module):
    """Their EncoderUNetModel of two levels, with attention at the lower one."""

    def __init__(self, pool, down=True, channels=32, classes=7):
        super().__init__()
        emb, wide, options = 4 * channels, 2 * channels, {"use_scale_shift_norm": True}
        self.model_channels, self.pool, self.num_res_blocks = channels, pool, 1
        self.time_embed = nn.Sequential(nn.Linear(channels, emb), nn.SiLU(), nn.Linear(emb, emb))

        def attend():
            return AttentionBlock(wide, 2, QKVAttention(2))

        def res(before, after, **more):
            return ResBlock(before, emb, after, **options, **more)

        blocks = (
            [nn.Conv2d(3, channels, 3, padding=1)], [res(channels, channels)],
            [res(channels, channels, down=True) if down else Down(channels)], [res(channels, wide), attend()],
        )  # fmt: skip
        self.input_blocks = nn.ModuleList(TimestepEmbedSequential(*layers) for layers in blocks)
        self.middle_block = TimestepEmbedSequential(res(wide, wide), attend(), res(wide, wide))
        norm, features = GroupNorm32(4, wide), 3 * channels + 2 * wide
        if pool == "adaptive":
            head = [norm, nn.SiLU(), nn.AdaptiveAvgPool2d((1, 1)), nn.Conv2d(wide, classes, 1), nn.Flatten()]
        elif pool == "attention":
            head = [norm, nn.SiLU(), AttentionPool2d(8, wide, 32, classes)]
        elif pool == "spatial":
            head = [nn.Linear(features, 2048), nn.ReLU(), nn.Linear(2048, classes)]
        else:
            head = [nn.Linear(features, 2048), GroupNorm32(4, 2048), nn.SiLU(), nn.Linear(2048, classes)]
        self.out = nn.Sequential(*head)

    def forward(self, x, timesteps):
        half = self.model_channels // 2
        angles = timesteps[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / half)[None]
        emb = self.time_embed(torch.cat([angles.cos(), angles.sin()], dim=-1))
        results, h = [], x
        for block in (*self.input_blocks, self.middle_block):
            h = block(h, emb)
            if self.pool.startswith("spatial"):
                results.append(h.type(x.dtype).mean(dim=(2, 3)))
        return self.out(torch.cat(results, dim=-1) if self.pool.startswith("spatial") else h)


Encoder.__name__ = "EncoderUNetModel"
Whole.__name__, SuperRes.__name__ = "UNetModel", "SuperResModel"


def openai_names(config):
    """Names in the state dict of improved- and guided-diffusion's UNetModel, listed as its constructor builds it."""

    def both(name):
        return [f"{name}.weight", f"{name}.bias"]

    def res(name, changes):
        parts = ["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"]
        parts += ["skip_connection"] if changes else []
        return [key for part in parts for key in both(f"{name}.{part}")]

    def attention(name):
        return [key for part in ("norm", "qkv", "proj_out") for key in both(f"{name}.{part}")]

    rates = {config.image_size // size for size in config.attention_resolutions}
    names = both("time_embed.0") + both("time_embed.2")
    names += ["label_emb.weight"] if config.num_classes else []
    ch = int(config.channel_mult[0] * config.channels)
    names += both("input_blocks.0.0")
    widths, ds, i = [ch], 1, 1
    for level, mult in enumerate(config.channel_mult):
        for _ in range(config.num_res_blocks):
            out = int(mult * config.channels)
            names += res(f"input_blocks.{i}.0", ch != out)
            names += attention(f"input_blocks.{i}.1") if ds in rates else []
            ch = out
            widths.append(ch)
            i += 1
        if level != len(config.channel_mult) - 1:
            if config.resblock_updown:
                names += res(f"input_blocks.{i}.0", False)
            elif config.conv_resample:
                names += both(f"input_blocks.{i}.0.op")
            widths.append(ch)
            ds *= 2
            i += 1
    names += res("middle_block.0", False) + attention("middle_block.1") + res("middle_block.2", False)
    i = 0
    for level, mult in reversed(list(enumerate(config.channel_mult))):
        for j in range(config.num_res_blocks + 1):
            out = int(mult * config.channels)
            names += res(f"output_blocks.{i}.0", ch + widths.pop() != out)
            ch = out
            place = 1
            if ds in rates:
                names += attention(f"output_blocks.{i}.1")
                place = 2
            if level and j == config.num_res_blocks:
                if config.resblock_updown:
                    names += res(f"output_blocks.{i}.{place}", False)
                elif config.conv_resample:
                    names += both(f"output_blocks.{i}.{place}.conv")
                ds //= 2
            i += 1
    return names + both("out.0") + both("out.2")
