"""From a `UNet` to its plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules import module as nn_module

from fastdiff.engine.plan import VECTOR, Algorithm, AttentionLayer, Buffer, Instruction, Op, Plan, PlanBuilder
from fastdiff.nets.blocks import (
    AttentionBlock,
    Block,
    Conv1x1,
    Conv3x3,
    Downsample,
    Dropout,
    GroupNormAct,
    Linear,
    PyramidConv,
    ResBlock,
    SiLU,
    Upsample,
)
from fastdiff.nets.unet import UNet

__all__ = [
    "CONVOLUTION", "KINDS", "SETTINGS", "Unsupported", "check_modules", "choose_algorithm", "computes_as",
    "hooks_for_all", "lower", "remember_forwards", "replaced_methods", "told",
]  # fmt: skip

CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# What a plan takes from modules besides their parameters.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    UNet: ("config",),
    ResBlock: ("scale_shift", "resample", "taps", "skip_scale"),
    AttentionBlock: ("num_heads", "layout", "skip_scale"),
    Downsample: ("padding",),
    GroupNormAct: ("groups", "eps", "act"),
    nn.Conv2d: CONVOLUTION,
    Conv1x1: CONVOLUTION,
    Conv3x3: CONVOLUTION,
    PyramidConv: (*CONVOLUTION, "taps"),
    nn.Embedding: ("max_norm",),
}
_METHODS = ("forward", "embed", "waves", "split_heads", "whole_kernel")
KINDS: tuple[type[nn.Module], ...] = (
    *SETTINGS, Block, Upsample, Dropout, Linear, nn.Linear, SiLU, nn.SiLU, nn.Identity, nn.ModuleList, nn.ModuleDict,
    nn.Sequential,
)  # fmt: skip
_FORWARDS: dict[type[nn.Module], Any] = {kind: kind.forward for kind in KINDS}
# Classes that compute what one of `KINDS` does, by that kind.
_ALIKE: dict[type[nn.Module], type[nn.Module]] = {}


# Input times output channels of a layer whose transformed weights, 144 bytes each, come from a cache.
CACHED_PRODUCTS = 1 << 13


class Unsupported(ValueError):
    """A part of the network that the engine cannot run; the message names it."""


def lower(unet: UNet, height: int, width: int, target: Literal["cpu", "cuda"] = "cpu") -> Plan:
    """The plan of a network for images of height x width pixels.

    Args:
        unet: The network; its weights are not looked at.
        height, width: Positive multiples of `unet.config.size_divisor`.
        target: Whose attention it has: the CPU's reads heads of whole vectors, or for one head folds two of its four
            linear layers away; a GPU's, q, k and v as they are. `fastdiff.engine.cuda.passes` goes on from there.

    Raises:
        ValueError: the size does not fit.
        Unsupported: a module that has no instruction.
    """
    divisor = unet.config.size_divisor
    if height < divisor or width < divisor or height % divisor or width % divisor:
        raise ValueError(f"height and width must be positive multiples of {divisor}, got {height} x {width}")
    check_modules(unet, KINDS)
    if target == "cuda" and unet.config.of_song:
        raise Unsupported(f"the engine on a GPU has no networks with {', '.join(unet.config.of_song)}")
    return _Lowering(unet, target).run(height, width)


def computes_as(kind: type[nn.Module], known: type[nn.Module]) -> None:
    """Tell the engine that a class computes, in the place of a known one, what that does: its subclasses may not."""
    remember_forwards((kind,))
    _ALIKE[kind] = known
    if known in SETTINGS:
        SETTINGS[kind] = SETTINGS[known]


def remember_forwards(kinds: Sequence[type[nn.Module]]) -> None:
    """Keep what classes are called by, so that it shows when someone puts another forward in its place."""
    _FORWARDS.update({kind: kind.forward for kind in kinds})


def check_modules(network: nn.Module, kinds: Sequence[type[nn.Module]]) -> None:
    """Raise Unsupported where a module is of none of these kinds, or is not called as its kind is."""
    if hooks_for_all():
        raise Unsupported("the engine does not call hooks, and there is one for all modules")
    for name, module in network.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"the engine does not call hooks, and {name or 'the network'} has one")
        # A subclass, a parametrised layer or another forward may compute anything.
        if _ALIKE.get(type(module), type(module)) not in kinds:
            raise Unsupported(f"the engine has no instruction for {told(name, module)}")
        if methods := replaced_methods(module):
            raise Unsupported(f"the engine has no instruction for {told(name, module)} with another {methods[0]}")


def hooks_for_all() -> bool:
    """Whether PyTorch calls a hook at every module."""
    return bool(nn_module._global_forward_hooks or nn_module._global_forward_pre_hooks)


def replaced_methods(module: nn.Module) -> list[str]:
    """Names of methods that someone put in the place of the class's, on the module or on its class."""
    own = module.__dict__
    names = [name for name in _METHODS if name in own]
    kind = type(module)
    if kind in _FORWARDS and kind.forward is not _FORWARDS[kind]:
        names.append("forward")
    return names


def told(name: str, module: nn.Module) -> str:
    """A module for messages."""
    return f"{name or 'the network'} ({type(module).__name__})"


def choose_algorithm(kernel: int, stride: int, channels_in: int, out: Buffer) -> Algorithm:
    """How a convolution is computed. It depends on the layer alone, so that a sample does not depend on its batch."""
    if kernel != 3 or stride != 1 or channels_in % VECTOR or out.channels % VECTOR or channels_in < 2 * VECTOR:
        return "direct"
    if out.height < 4 or out.width < 4:
        return "direct"
    # Tiles of 4 need fewer products, and weights 4 times as large. Small images cannot pay for reading those from
    # memory, but those of few channels stay in a cache.
    if min(out.height, out.width) >= 8 or channels_in * out.channels <= CACHED_PRODUCTS:
        return "winograd4"
    return "winograd2"


class _Lowering(PlanBuilder):
    def __init__(self, unet: UNet, target: Literal["cpu", "cuda"]) -> None:
        super().__init__(unet)
        self.unet, self.target = unet, target
        self.statistics: dict[int, int] = {}
        # A sum that is multiplied by a number is left as it is, and the number is that of its buffer: a norm does not
        # see it but for its epsilon, and what else reads the buffer has it in its weights.
        self.factors: dict[int, float] = {}

    def run(self, height: int, width: int) -> Plan:
        unet = self.unet
        self.check_embedding()
        image = self.buffer(height, width, unet.config.in_channels)
        x, skips = image, []
        level = image
        for number, block in enumerate(unet.input_blocks):
            x = self.block(block, (x,))
            if unet.pyramid is not None and str(number) in unet.pyramid:
                level = x = self.pyramid(unet.pyramid[str(number)], level, x)
            skips.append(x)
        x = self.block(unet.middle_block, (x,))
        for block in unet.output_blocks:
            x = self.block(block, (x, skips.pop()))
        norm = self.norm(unet.norm_out, (x,))
        output = self.conv(unet.conv_out, (x,), norm=norm, act=unet.norm_out.act)
        if self.buffers[output].channels != unet.config.out_channels:
            raise Unsupported(
                f"conv_out makes {self.buffers[output].channels} channels, and the configuration says "
                f"{unet.config.out_channels}"
            )
        return self.plan(image, output)

    def factor(self, buffer: int) -> float:
        return self.factors.get(buffer, 1.0)

    def factors_of(self, sources: tuple[int, ...]) -> tuple[tuple[int, float], ...]:
        found = tuple((self.buffers[source].channels, self.factor(source)) for source in sources)
        return () if all(factor == 1 for _, factor in found) else found

    def block(self, layers: nn.Module, sources: tuple[int, ...]) -> int:
        if not isinstance(layers, Block):
            raise Unsupported(f"the engine has no instruction for {told(self.names[layers], layers)}")
        for layer in layers:
            if isinstance(layer, ResBlock):
                sources = (self.res_block(layer, sources),)
                continue
            (x,) = self.single(layer, sources)
            if isinstance(layer, AttentionBlock):
                x = self.attention(layer, x)
            elif isinstance(layer, Downsample):
                pad = 1 if layer.padding == "symmetric" else 0
                x = self.pool(x) if layer.conv is None else self.conv(layer.conv, (x,), stride=2, pad=pad)
            elif isinstance(layer, Upsample):
                x = self.repeat(x) if layer.conv is None else self.conv(layer.conv, (x,), upsample=True)
            elif isinstance(layer, nn.Conv2d) and not isinstance(layer, PyramidConv):
                x = self.conv(layer, (x,))
            else:
                raise Unsupported(f"the engine has no instruction for {told(self.names[layer], layer)}")
            sources = (x,)
        (x,) = self.single(layers, sources)
        return x

    def single(self, module: nn.Module, sources: tuple[int, ...]) -> tuple[int]:
        if len(sources) != 1:
            raise Unsupported(f"the engine cannot run {self.names[module]} on a concatenation")
        return (sources[0],)

    def res_block(self, block: ResBlock, sources: tuple[int, ...]) -> int:
        if not isinstance(block.dropout, Dropout | nn.Identity):
            raise Unsupported(f"the engine has no instruction for {told(self.names[block.dropout], block.dropout)}")
        norm = self.norm(block.norm1, sources)
        channels = block.conv1.weight.shape[0]
        time = self.time(block.emb_proj, 2 * channels if block.scale_shift else channels)
        added, scaled = (None, time) if block.scale_shift else (time, None)
        if block.resample == "down":
            (x,) = self.single(block, sources)
            h = self.conv(block.conv1, (self.pool(x, norm, block.norm1.act, block.taps),), time=added)
            sources = (self.pool(x, taps=block.taps),)
        elif block.resample == "up":
            (x,) = self.single(block, sources)
            if tuple(block.taps) == (1, 1):
                h = self.conv(block.conv1, sources, norm=norm, act=block.norm1.act, upsample=True, time=added)
            else:
                h = self.conv(block.conv1, (self.repeat(x, norm, block.norm1.act, block.taps),), time=added)
            sources = (self.repeat(x, taps=block.taps),)
        else:
            h = self.conv(block.conv1, sources, norm=norm, act=block.norm1.act, time=added)
        norm = self.norm(block.norm2, (h,), scaled)
        if isinstance(block.skip, nn.Identity):
            (residual,) = self.single(block, sources)
        else:
            # The number is in both weights.
            residual = self.conv(block.skip, sources, gain=block.skip_scale)
            return self.conv(
                block.conv2, (h,), norm=norm, act=block.norm2.act, residual=residual, gain=block.skip_scale
            )
        gain = 1 / self.factor(residual)
        x = self.conv(block.conv2, (h,), norm=norm, act=block.norm2.act, residual=residual, gain=gain)
        self.factors[x] = self.factor(residual) * block.skip_scale
        return x

    def pyramid(self, module: nn.Module, level: int, x: int) -> int:
        """The block's result joined by a convolution of the last level's, or the image."""
        if not isinstance(module, PyramidConv):
            raise Unsupported(f"the engine has no instruction for {told(self.names[module], module)}")
        above, beside = self.buffers[level], self.buffers[x]
        self.check(module, PyramidConv, (beside.channels, above.channels, 3, 3))
        found = [getattr(module, name) for name in CONVOLUTION]
        if found != [(3, 3), (1, 1), (1, 1), (1, 1), 1, "zeros"] or module.taps not in ((1, 1), (1, 3, 3, 1)):
            raise Unsupported(f"the engine has no instruction for {self.names[module]}: {module}")
        target = self.buffer(beside.height, beside.width, beside.channels)
        self.emit(
            Instruction(
                "conv",
                (level,),
                target,
                kernel=2 + len(module.taps),
                stride=2,
                pad=module.pad,
                residual=x,
                parameter=self.names[module],
                factors=self.factors_of((level,)),
                gain=1 / self.factor(x),
            )
        )
        self.factors[target] = self.factor(x) * self.unet.config.skip_scale
        return target

    def attention(self, block: AttentionBlock, x: int) -> int:
        buffer = self.buffers[x]
        self.check(block.qkv, nn.Linear, (3 * buffer.channels, buffer.channels))
        self.check(block.proj, nn.Linear, (buffer.channels, buffer.channels))
        norm = self.norm(block.norm, (x,))
        if self.target == "cuda":
            qkv = self.conv(
                block.qkv, (x,), norm=norm, heads=block.num_heads, qkv="plain", channels=3 * buffer.channels
            )
            out = self.buffer(buffer.height, buffer.width, buffer.channels)
            self.emit(Instruction("attention", (qkv,), out, heads=block.num_heads))
            return self.conv(block.proj, (out,), residual=x, channels=buffer.channels)
        if block.num_heads == 1 and buffer.channels % VECTOR == 0:
            # Half of the linear layers' work: see fastdiff.engine.pack.
            out = self.buffer(buffer.height, buffer.width, buffer.channels)
            gain = 1 / self.factor(x)
            qv = self.conv(block.qkv, (x,), norm=norm, qkv="folded", channels=2 * buffer.channels, gain=gain)
            self.factors[out] = self.factor(x) * block.skip_scale
            return self.emit(Instruction("attention", (qv, x), out, norm=norm, residual=x))
        # Heads come in whole vectors, with zeros behind.
        width = block.num_heads * -(-buffer.channels // block.num_heads // VECTOR) * VECTOR
        qkv = self.conv(block.qkv, (x,), norm=norm, heads=block.num_heads, qkv="packed", channels=3 * width)
        out = self.buffer(buffer.height, buffer.width, width)
        self.emit(Instruction("attention", (qkv,), out, heads=block.num_heads))
        gain = 1 / self.factor(x)
        y = self.conv(block.proj, (out,), residual=x, heads=block.num_heads, qkv="projection", gain=gain)
        self.factors[y] = self.factor(x) * block.skip_scale
        return y

    def norm(self, module: GroupNormAct, sources: tuple[int, ...], time: int | None = None) -> int:
        for source in sources:
            if source not in self.statistics:
                target = self.buffer(2, 1, self.buffers[source].channels)
                self.statistics[source] = self.emit(Instruction("stats", (source,), target))
        channels = sum(self.buffers[n].channels for n in sources)
        self.check(module, GroupNormAct, (channels,), (channels,))
        return self.emit(
            Instruction(
                "norm",
                sources,
                self.buffer(2, 1, channels),
                stats=tuple(self.statistics[n] for n in sources),
                parameter=self.names[module],
                time=time,
                groups=module.groups,
                eps=module.eps,
                factors=self.factors_of(sources),
            )
        )

    def conv(
        self,
        module: nn.Conv2d | nn.Linear,
        sources: tuple[int, ...],
        *,
        stride: int = 1,
        pad: int | None = None,
        upsample: bool = False,
        norm: int | None = None,
        act: bool = False,
        residual: int | None = None,
        time: int | None = None,
        heads: int = 1,
        qkv: AttentionLayer = "",
        channels: int | None = None,
        gain: float = 1.0,
    ) -> int:
        channels_in = sum(self.buffers[n].channels for n in sources)
        kernel = module.kernel_size[0] if isinstance(module, nn.Conv2d) else 1
        pad = kernel // 2 if pad is None else pad
        if channels is not None or qkv:
            # The linear layers of an attention, whose shapes are known to fit.
            width = module.weight.shape[0] if channels is None else channels
        else:
            width = module.weight.shape[0]
            self.check(module, nn.Conv2d, (width, channels_in, kernel, kernel))
            assert isinstance(module, nn.Conv2d)
            found = [getattr(module, name) for name in CONVOLUTION]
            if kernel not in (1, 3) or found != [(kernel,) * 2, (stride,) * 2, (pad,) * 2, (1, 1), 1, "zeros"]:
                raise Unsupported(f"the engine has no instruction for {self.names[module]}: {module}")
        first = self.buffers[sources[0]]
        scale = 2 if upsample else 1
        target = self.buffer(first.height * scale // stride, first.width * scale // stride, width)
        instruction = Instruction(
            "conv",
            sources,
            target,
            kernel=kernel,
            stride=stride,
            pad=pad,
            upsample=upsample,
            act=act,
            norm=norm,
            residual=residual,
            parameter=self.names[module],
            time=time,
            heads=heads,
            qkv=qkv,
            # Behind a norm the values are the network's own.
            factors=() if norm is not None else self.factors_of(sources),
            gain=gain,
        )
        algorithm = choose_algorithm(kernel, stride, channels_in, self.buffers[target])
        return self.emit(replace(instruction, algorithm=algorithm))

    def pool(self, x: int, norm: int | None = None, act: bool = False, taps: tuple[int, ...] = (1, 1)) -> int:
        buffer = self.buffers[x]
        return self.resample("pool", x, buffer.height // 2, buffer.width // 2, norm, act, taps)

    def repeat(self, x: int, norm: int | None = None, act: bool = False, taps: tuple[int, ...] = (1, 1)) -> int:
        buffer = self.buffers[x]
        return self.resample("repeat", x, 2 * buffer.height, 2 * buffer.width, norm, act, taps)

    def resample(
        self, op: Op, x: int, height: int, width: int, norm: int | None, act: bool, taps: tuple[int, ...]
    ) -> int:
        if tuple(taps) not in ((1, 1), (1, 3, 3, 1)):
            raise Unsupported(f"the engine has no instruction for a filter of {taps}")
        target = self.buffer(height, width, self.buffers[x].channels)
        if norm is None:
            self.factors[target] = self.factor(x)
        kernel = 4 if len(taps) == 4 else 1
        return self.emit(Instruction(op, (x,), target, norm=norm, act=act, kernel=kernel))

    def time(self, projection: nn.Linear, width: int) -> int:
        self.check(projection, nn.Linear, (width, 4 * self.unet.config.channels))
        start = self.time_width
        self.projections.append(self.names[projection])
        self.time_width += width
        return start

    def check_embedding(self) -> None:
        """What happens to times and labels has no instructions, so it must be as `UNet` makes it."""
        unet, width = self.unet, 4 * self.unet.config.channels
        kinds = (nn.Linear, nn.SiLU, nn.Linear)
        if len(unet.time_embed) != 3 or not all(map(isinstance, unet.time_embed, kinds)):
            raise Unsupported(f"the engine has no instruction for time_embed: {unet.time_embed}")
        self.check(unet.time_embed[0], nn.Linear, (width, unet.config.waves))
        self.check(unet.time_embed[2], nn.Linear, (width, width))
        if (unet.label_emb is None) != (unet.config.num_classes is None):
            raise Unsupported(f"label_emb is {unet.label_emb} with num_classes={unet.config.num_classes}")
        if unet.label_emb is not None:
            labels = width if unet.config.label_place == "behind_mlp" else unet.config.waves
            self.check(unet.label_emb, nn.Embedding, (unet.config.num_classes or 0, labels), ())
            if unet.label_emb.max_norm is not None:
                raise Unsupported("the engine has no instruction for label_emb with max_norm")

    def check(
        self, module: nn.Module, kind: type[nn.Module], weight: tuple[int, ...], bias: tuple[int, ...] | None = None
    ) -> None:
        """The module is of this kind, and its parameters have these shapes: what the executors rely on."""
        name = self.names[module]
        if not isinstance(module, kind):
            raise Unsupported(
                f"the engine has no instruction for {told(name, module)} in the place of a {kind.__name__}"
            )
        shapes = {"weight": weight, "bias": weight[:1] if bias is None else bias}
        for part, shape in shapes.items():
            value = getattr(module, part, None)
            if isinstance(value, Tensor) and tuple(value.shape) != shape:
                raise Unsupported(f"the engine expects {name}.{part} of shape {list(shape)}, got {list(value.shape)}")
