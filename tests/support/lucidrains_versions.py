"""Doubles of denoising-diffusion-pytorch's `Unet` as its versions from 0.25 to 1.10 have it, and of `Unet1D`.

Written after the published code's structure: names, order of calls, epsilons. The package itself has one version alone.
"""

import itertools
import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Version:
    """What a version has where others have something else."""

    standardized: bool = True
    norm: str = "layer"
    groups: int | None = 4
    divides: bool = True
    halves: str = "pixels"
    wraps: bool = True
    memory: int = 0
    full: bool = False
    cosines: bool = False
    one_row: bool = False


VERSIONS = {
    "0.25": Version(standardized=False, norm="layer with offset", divides=False, halves="convolution"),
    "0.27": Version(halves="convolution", cosines=True),
    "1.0": Version(),
    "1.8": Version(standardized=False, norm="rms", divides=False, wraps=False, full=True),
    "1.9": Version(standardized=False, norm="rms", divides=False, wraps=False, full=True, memory=4),
    "1D of 1.0": Version(norm="layer", divides=False, halves="convolution", one_row=True),
    "1D": Version(
        standardized=False, norm="rms", groups=None, divides=False, halves="convolution", one_row=True
    ),
}  # fmt: skip


def ones(dim, version):
    return nn.Parameter(torch.ones(1, dim, *[1] * (1 if version.one_row else 2)))


class RMSNorm(nn.Module):
    def __init__(self, dim, version):
        super().__init__()
        self.g = ones(dim, version)

    def forward(self, x):
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class LayerNorm(nn.Module):
    def __init__(self, dim, version):
        super().__init__()
        self.g = ones(dim, version)
        self.b = nn.Parameter(torch.zeros_like(self.g)) if version.norm == "layer with offset" else None

    def forward(self, x):
        var = torch.var(x, dim=1, unbiased=False, keepdim=True)
        y = (x - x.mean(dim=1, keepdim=True)) * (var + 1e-5).rsqrt() * self.g
        return y if self.b is None else y + self.b


def pixel_norm(dim, version):
    return (RMSNorm if version.norm == "rms" else LayerNorm)(dim, version)


class WeightStandardizedConv2d(nn.Conv2d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=(1, 2, 3), unbiased=False, keepdim=True)
        return F.conv2d(x, (self.weight - mean) * (var + 1e-5).rsqrt(), self.bias, padding=self.padding)


class Standardized1d(nn.Conv1d):
    def forward(self, x):
        var, mean = torch.var_mean(self.weight, dim=(1, 2), unbiased=False, keepdim=True)
        return F.conv1d(x, (self.weight - mean) * (var + 1e-5).rsqrt(), self.bias, padding=self.padding)


Standardized1d.__name__ = "WeightStandardizedConv2d"


def conv(version):
    return nn.Conv1d if version.one_row else nn.Conv2d


class Residual(nn.Module):
    def __init__(self, fn):
        super().__init__()
        self.fn = fn

    def forward(self, x):
        return self.fn(x) + x


class PreNorm(nn.Module):
    def __init__(self, dim, fn, version):
        super().__init__()
        self.fn, self.norm = fn, pixel_norm(dim, version)

    def forward(self, x):
        return self.fn(self.norm(x))


class HalveByPixels(nn.Module):
    def forward(self, x):
        return F.pixel_unshuffle(x, 2)


class Sinusoid(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim = dim

    def forward(self, t):
        half = self.dim // 2
        angles = t[:, None] * torch.exp(torch.arange(half) * -(math.log(10000) / (half - 1)))[None]
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


class Block(nn.Module):
    def __init__(self, dim, dim_out, version):
        super().__init__()
        standardized = Standardized1d if version.one_row else WeightStandardizedConv2d
        self.proj = (standardized if version.standardized else conv(version))(dim, dim_out, 3, padding=1)
        self.norm = RMSNorm(dim_out, version) if version.groups is None else nn.GroupNorm(version.groups, dim_out)
        self.act = nn.SiLU()

    def forward(self, x, scale_shift=None):
        x = self.norm(self.proj(x))
        if scale_shift is not None:
            x = x * (scale_shift[0] + 1) + scale_shift[1]
        return self.act(x)


class ResnetBlock(nn.Module):
    def __init__(self, dim, dim_out, time_dim, version):
        super().__init__()
        self.mlp = nn.Sequential(nn.SiLU(), nn.Linear(time_dim, 2 * dim_out))
        self.block1, self.block2 = Block(dim, dim_out, version), Block(dim_out, dim_out, version)
        self.res_conv = conv(version)(dim, dim_out, 1) if dim != dim_out else nn.Identity()

    def forward(self, x, emb):
        told = self.mlp(emb).chunk(2, dim=1)
        told = [part.view(*part.shape, *[1] * (x.ndim - 2)) for part in told]
        return self.block2(self.block1(x, told)) + self.res_conv(x)


class Attention(nn.Module):
    def __init__(self, dim, heads, size, version, linear):
        super().__init__()
        self.heads, self.version, self.linear = heads, version, linear
        if not version.wraps:
            self.norm = pixel_norm(dim, version)
        if version.memory:
            self.mem_kv = nn.Parameter(torch.randn(2, heads, *((size, 4) if linear else (4, size))))
        self.to_qkv = conv(version)(dim, 3 * heads * size, 1, bias=False)
        self.to_out = conv(version)(heads * size, dim, 1)
        if linear:
            self.to_out = nn.Sequential(self.to_out, pixel_norm(dim, version))

    def forward(self, x):
        batch, _, *pixels = x.shape
        x = x if self.version.wraps else self.norm(x)
        q, k, v = (part.reshape(batch, self.heads, -1, math.prod(pixels)) for part in self.to_qkv(x).chunk(3, dim=1))
        if self.version.memory:
            memory = self.mem_kv if self.linear else self.mem_kv.transpose(2, 3)
            k, v = (
                torch.cat([m.expand(batch, -1, -1, -1), part], dim=-1) for m, part in zip(memory, (k, v), strict=True)
            )
        if self.linear:
            q, k = q.softmax(dim=-2) * q.shape[2] ** -0.5, k.softmax(dim=-1)
            v = v / math.prod(pixels) if self.version.divides else v
            h = torch.einsum("bhde,bhdn->bhen", torch.einsum("bhdn,bhen->bhde", k, v), q)
        else:
            scale = 10 if self.version.cosines else q.shape[2] ** -0.5
            if self.version.cosines:
                q, k = F.normalize(q, dim=2), F.normalize(k, dim=2)
            h = torch.einsum("bhij,bhdj->bhdi", (torch.einsum("bhdi,bhdj->bhij", q, k) * scale).softmax(dim=-1), v)
        return self.to_out(h.reshape(batch, -1, *pixels))


class Unet(nn.Module):
    def __init__(self, version, dim=16, mults=(1, 2), channels=3):
        super().__init__()
        self.version, self.channels, self.self_condition = version, channels, False
        layer, widths, time_dim = conv(version), [dim, *(dim * mult for mult in mults)], 4 * dim
        self.init_conv = layer(channels, dim, 7, padding=3)
        self.time_mlp = nn.Sequential(Sinusoid(dim), nn.Linear(dim, time_dim), nn.GELU(), nn.Linear(time_dim, time_dim))

        def attend(width, linear):
            inner = Attention(width, 2, 12, version, linear)
            return Residual(PreNorm(width, inner, version)) if version.wraps else inner

        def res(before, after):
            return ResnetBlock(before, after, time_dim, version)

        def halve(before, after):
            if version.halves == "convolution":
                return layer(before, after, 4, 2, 1)
            return nn.Sequential(HalveByPixels(), layer(4 * before, after, 1))

        def double(before, after):
            return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), layer(before, after, 3, padding=1))

        self.downs, self.ups, last = nn.ModuleList(), nn.ModuleList(), len(mults) - 1
        for level, (a, b) in enumerate(itertools.pairwise(widths)):
            end = halve(a, b) if level < last else layer(a, b, 3, padding=1)
            attention = attend(a, not (version.full and level == last))
            self.downs.append(nn.ModuleList([res(a, a), res(a, a), attention, end]))
        self.mid_block1, self.mid_attn = res(widths[-1], widths[-1]), attend(widths[-1], False)
        self.mid_block2 = res(widths[-1], widths[-1])
        for level in range(last, -1, -1):
            a, b = widths[level], widths[level + 1]
            end = double(b, a) if level else layer(b, a, 3, padding=1)
            attention = attend(b, not (version.full and level == last))
            self.ups.append(nn.ModuleList([res(a + b, b), res(a + b, b), attention, end]))
        self.final_res_block, self.final_conv = res(2 * dim, dim), layer(dim, channels, 1)

    def forward(self, x, time, x_self_cond=None):
        x = first = self.init_conv(x)
        emb, kept = self.time_mlp(time), []

        def attended(attention, x):
            return attention(x) if self.version.wraps else attention(x) + x

        for res1, res2, attention, end in self.downs:
            kept.append(x := res1(x, emb))
            kept.append(x := attended(attention, res2(x, emb)))
            x = end(x)
        x = attended(self.mid_attn, self.mid_block1(x, emb))
        x = self.mid_block2(x, emb)
        for res1, res2, attention, end in self.ups:
            x = res1(torch.cat((x, kept.pop()), dim=1), emb)
            x = end(attended(attention, res2(torch.cat((x, kept.pop()), dim=1), emb)))
        return self.final_conv(self.final_res_block(torch.cat((x, first), dim=1), emb))


class Unet1D(Unet):
    pass


def version(name):
    """The network, shaken, and what a call of it is given."""
    torch.manual_seed(0)
    kind = VERSIONS[name]
    net = (Unet1D if kind.one_row else Unet)(kind).eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    size = (24,) if kind.one_row else (8, 12)
    return net, (torch.randn(2, 3, *size), torch.tensor([3, 700]))
