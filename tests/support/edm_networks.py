"""EDM's networks, derived anew in plain PyTorch under the names of their files, and small ones of each."""

import math

import torch
import torch.nn.functional as F
from torch import nn

import fastdiff as fd
from fastdiff.convert.edm import from_edm, unet_config_from_edm


class _Filter(nn.Module):
    """Of [B, C, H, W]: rows, then columns, upsampled by zeros or kept at every other place."""

    def __init__(self, taps):
        super().__init__()
        line = torch.tensor(taps, dtype=torch.float32)
        self.register_buffer("resample_filter", torch.outer(line, line)[None, None] / line.sum() ** 2)
        self.num = len(taps)

    def line(self, dtype):
        # The square's rows sum to the line.
        return self.resample_filter[0, 0].sum(dim=1).to(dtype)

    def down(self, x):
        pad = (self.num - 1) // 2
        for dim in (2, 3):
            x = x.transpose(dim, 3)
            x = F.pad(x, (pad, pad)).unfold(3, self.num, 2) @ self.line(x.dtype)
            x = x.transpose(dim, 3)
        return x

    def up(self, x):
        pad = self.num - 1 - (self.num - 1) // 2
        for dim in (2, 3):
            x = x.transpose(dim, 3)
            x = torch.stack([x, torch.zeros_like(x)], dim=4).flatten(3)
            x = F.pad(x, (pad, pad - 1)).unfold(3, self.num, 1) @ (2 * self.line(x.dtype))
            x = x.transpose(dim, 3)
        return x


class _Conv(_Filter):
    def __init__(self, channels, channels_out, kernel, taps):
        super().__init__(taps)
        self.weight = nn.Parameter(torch.zeros(channels_out, channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(channels_out))

    def forward(self, x, how=""):
        x = {"up": self.up, "down": self.down}.get(how, lambda x: x)(x)
        return F.conv2d(x, self.weight, self.bias, padding=self.weight.shape[2] // 2)


def _plain_conv(channels, channels_out, kernel):
    layer = _Conv(channels, channels_out, kernel, [1, 1])
    del layer.resample_filter
    return layer


def _norm(channels, eps):
    return nn.GroupNorm(min(32, channels // 4), channels, eps=eps)


class _Block(nn.Module):
    def __init__(self, channels, channels_out, emb, how, heads, is_song, taps, eps):
        super().__init__()
        self.how, self.heads, self.is_song = how, heads, is_song
        self.scale = math.sqrt(0.5) if is_song else 1.0
        self.norm0 = _norm(channels, eps)
        self.conv0 = _Conv(channels, channels_out, 3, taps) if how else _plain_conv(channels, channels_out, 3)
        self.affine = nn.Linear(emb, channels_out * (1 if is_song else 2))
        self.norm1 = _norm(channels_out, eps)
        self.conv1 = _plain_conv(channels_out, channels_out, 3)
        projects = channels != channels_out or (how and is_song)
        if projects:
            self.skip = _Conv(channels, channels_out, 1, taps) if how else _plain_conv(channels, channels_out, 1)
        elif how:
            self.skip = _Filter(taps)
        if heads:
            self.norm2 = _norm(channels_out, eps)
            self.qkv = _plain_conv(channels_out, 3 * channels_out, 1)
            self.proj = _plain_conv(channels_out, channels_out, 1)

    def forward(self, x, emb):
        h = self.conv0(F.silu(self.norm0(x)), self.how)
        e = self.affine(emb)[:, :, None, None]
        if self.is_song:
            h = self.norm1(h + e)
        else:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm1(h) * (1 + scale) + shift
        h = self.conv1(F.silu(h))
        if hasattr(self, "skip"):
            x = self.skip(x, self.how) if isinstance(self.skip, _Conv) else getattr(self.skip, self.how)(x)
        x = (x + h) * self.scale
        if self.heads:
            batch, channels, height, width = x.shape
            qkv = self.qkv(self.norm2(x)).reshape(batch, self.heads, channels // self.heads, 3, height * width)
            q, k, v = qkv.unbind(3)
            weights = (q.transpose(2, 3) @ k / math.sqrt(channels // self.heads)).softmax(dim=3)
            h = (v @ weights.transpose(2, 3)).reshape(batch, channels, height, width)
            x = (x + self.proj(h)) * self.scale
        return x


class PlainEDM(nn.Module):
    """`SongUNet` or `DhariwalUNet` with the settings of their constructors."""

    def __init__(
        self, network, img_resolution, in_channels=3, out_channels=3, label_dim=0, augment_dim=0, model_channels=128,
        channel_mult=(1, 2), num_blocks=1, attn_resolutions=(4,), dropout=0.0, embedding_type="positional",
        channel_mult_noise=1, encoder_type="standard", resample_filter=(1, 1),
    ):  # fmt: skip
        super().__init__()
        self.is_song = is_song = network == "SongUNet"
        self.taps, self.fourier = list(resample_filter), embedding_type == "fourier"
        eps, emb, waves = 1e-6 if is_song else 1e-5, 4 * model_channels, channel_mult_noise * model_channels
        self.waves = waves
        sizes = [img_resolution >> level for level in range(len(channel_mult))]
        widths = [model_channels * mult for mult in channel_mult]
        if self.fourier:
            self.map_noise = nn.Module()
            self.map_noise.register_buffer("freqs", torch.zeros(waves // 2))
        if label_dim:
            self.map_label = nn.Linear(label_dim, waves if is_song else emb, bias=is_song)
        if augment_dim:
            self.map_augment = nn.Linear(augment_dim, waves, bias=False)
        self.map_layer0, self.map_layer1 = nn.Linear(waves, emb), nn.Linear(emb, emb)

        def block(channels, channels_out, how="", attends=False):
            heads = 0 if not attends else 1 if is_song else channels_out // 64
            return _Block(channels, channels_out, emb, how, heads, is_song, self.taps, eps)

        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        width, aux, kept = model_channels if is_song else widths[0], in_channels, []
        for level, (size, out) in enumerate(zip(sizes, widths, strict=True)):
            name = f"{size}x{size}"
            if level == 0:
                self.enc[f"{name}_conv"] = _plain_conv(in_channels, width, 3)
            else:
                self.enc[f"{name}_down"] = block(width, width, "down")
                if encoder_type == "residual":
                    self.enc[f"{name}_aux_residual"] = _Conv(aux, width, 3, self.taps)
                    aux = width
            kept.append(width)
            for i in range(num_blocks):
                self.enc[f"{name}_block{i}"] = block(width, out, attends=size in attn_resolutions)
                width = out
                kept.append(width)
        for level in reversed(range(len(widths))):
            size, out = sizes[level], widths[level]
            name = f"{size}x{size}"
            if level == len(widths) - 1:
                self.dec[f"{name}_in0"], self.dec[f"{name}_in1"] = (
                    block(width, width, attends=True),
                    block(width, width),
                )
            else:
                self.dec[f"{name}_up"] = block(width, width, "up")
            for i in range(num_blocks + 1):
                attends = size in attn_resolutions and (not is_song or i == num_blocks)
                self.dec[f"{name}_block{i}"] = block(width + kept.pop(), out, attends=attends)
                width = out
        norm, conv = _norm(width, eps), _plain_conv(width, out_channels, 3)
        if is_song:
            self.dec[f"{sizes[0]}x{sizes[0]}_aux_norm"], self.dec[f"{sizes[0]}x{sizes[0]}_aux_conv"] = norm, conv
        else:
            self.out_norm, self.out_conv = norm, conv

    def forward(self, x, noise, labels=None, augment=None):
        half = self.waves // 2
        if self.fourier:
            angles = 2 * math.pi * noise[:, None] * self.map_noise.freqs[None]
        else:
            steps = torch.arange(half, dtype=x.dtype) / (half - 1 if self.is_song else half)
            angles = noise[:, None] * 10000.0 ** -steps[None]
        emb = torch.cat([angles.sin(), angles.cos()] if self.is_song else [angles.cos(), angles.sin()], dim=1)
        if labels is not None and self.is_song:
            emb = emb + self.map_label(labels * math.sqrt(labels.shape[1]))
        if augment is not None:
            emb = emb + self.map_augment(augment)
        emb = self.map_layer1(F.silu(self.map_layer0(emb)))
        if labels is not None and not self.is_song:
            emb = emb + self.map_label(labels)
        emb = F.silu(emb)
        kept, aux = [], x
        for name, layer in self.enc.items():
            if name.endswith("aux_residual"):
                # The filter behind the convolution, whose result has a border of what the filter reaches.
                pad = 1 + (len(self.taps) - 1) // 2
                y = F.conv2d(aux, layer.weight, padding=pad)
                y = _inner(layer, y)
                x = kept[-1] = aux = (x + y + layer.bias[:, None, None]) * math.sqrt(0.5)
                continue
            x = layer(x, emb) if isinstance(layer, _Block) else layer(x)
            kept.append(x)
        *blocks, norm, conv = self.dec.values() if self.is_song else [*self.dec.values(), self.out_norm, self.out_conv]
        for layer in blocks:
            if x.shape[1] != layer.norm0.num_channels:
                x = torch.cat([x, kept.pop()], dim=1)
            x = layer(x, emb)
        return conv(F.silu(norm(x)))


def _inner(layer, y):
    """Filtered at every other place without zeros outside."""
    for dim in (2, 3):
        y = (y.transpose(dim, 3).unfold(3, layer.num, 2) @ layer.line(y.dtype)).transpose(dim, 3)
    return y


_NCSNPP = {
    "embedding_type": "fourier", "channel_mult_noise": 2, "encoder_type": "residual", "resample_filter": [1, 3, 3, 1],
}  # fmt: skip
_SMALL = {"img_resolution": 8, "model_channels": 16, "channel_mult": [2, 2], "num_blocks": 1, "attn_resolutions": [4]}
SETTINGS = {
    "ddpmpp": ("SongUNet", _SMALL | {"num_blocks": 2}),
    "ddpmpp with labels": ("SongUNet", _SMALL | {"label_dim": 5, "augment_dim": 9, "channel_mult": [1, 2]}),
    "ncsnpp": ("SongUNet", _SMALL | _NCSNPP | {"channel_mult": [2, 2, 2], "augment_dim": 9}),
    "ncsnpp with labels": ("SongUNet", _SMALL | _NCSNPP | {"label_dim": 3, "num_blocks": 2}),
    "adm": ("DhariwalUNet", _SMALL | {"model_channels": 64, "channel_mult": [1, 2], "label_dim": 4, "augment_dim": 9}),
}


def plain(case, dtype=torch.float64, seed=0):
    """A small network of the re-derivation with random parameters."""
    network, settings = SETTINGS[case]
    model = PlainEDM(network, **settings).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if "resample_filter" in name:
                continue
            fan = value[0].numel() if value.ndim > 1 else 4
            value.copy_(torch.randn(value.shape, generator=generator, dtype=torch.float64) / fan**0.5)
            if value.ndim == 1 and "norm" in name and name.endswith("weight"):
                value.add_(1)
    return model


def config_of(case):
    """The same network's configuration here."""
    network, settings = SETTINGS[case]
    return unet_config_from_edm(network, {"dropout": 0.0} | settings)


def own(case, model):
    """The same network here, with the same weights."""
    unet = fd.UNet(config_of(case)).to(model.map_layer0.weight.dtype).eval()
    unet.load_state_dict(from_edm(model.state_dict(), unet.config))
    return unet


def calls(case, dtype=torch.float64, batch=3, size=None, seed=1):
    """Images, noise levels as the network is given them, labels and their one-hot vectors."""
    settings = SETTINGS[case][1]
    generator = torch.Generator().manual_seed(seed)
    size = (settings["img_resolution"],) * 2 if size is None else size
    x = torch.randn(batch, 3, *size, generator=generator, dtype=torch.float64).to(dtype)
    t = (torch.randn(batch, generator=generator, dtype=torch.float64) / 2).to(dtype)
    num = settings.get("label_dim", 0)
    y = torch.randint(0, num, (batch,), generator=generator) if num else None
    return x, t, y, None if y is None else F.one_hot(y, num).to(dtype)


def score_sde_state(model):
    """The parameters of `SongUNet` as score_sde's checkpoints have them: modules by their number in the network."""
    modules = [{"W": model.map_noise.freqs}] if model.fourier else []
    for layer in (model.map_layer0, model.map_layer1, *model.enc.values(), *model.dec.values()):
        if isinstance(layer, _Block):
            parts = {"GroupNorm_0": layer.norm0, "Conv_0": layer.conv0, "Dense_0": layer.affine}
            parts |= {"GroupNorm_1": layer.norm1, "Conv_1": layer.conv1}
            parts |= {"Conv_2": layer.skip} if hasattr(layer, "skip") else {}
            modules.append({f"{name}.{end}": getattr(part, end) for name, part in parts.items() for end in _ENDS})
            if layer.heads:
                attention = {f"GroupNorm_0.{end}": getattr(layer.norm2, end) for end in _ENDS}
                for n in range(3):
                    attention |= {f"NIN_{n}.W": layer.qkv.weight[n::3, :, 0, 0].T, f"NIN_{n}.b": layer.qkv.bias[n::3]}
                modules.append(attention | {"NIN_3.W": layer.proj.weight[:, :, 0, 0].T, "NIN_3.b": layer.proj.bias})
        else:
            name = "Conv2d_0." if getattr(layer, "num", 2) > 2 else ""
            modules.append({f"{name}{end}": getattr(layer, end) for end in _ENDS})
    named = {
        f"module.all_modules.{n}.{name}": value for n, module in enumerate(modules) for name, value in module.items()
    }
    return {name: value.detach().clone() for name, value in named.items()}


_ENDS = ("weight", "bias")
