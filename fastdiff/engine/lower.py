"""From a `UNet` to its plan."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from fastdiff.engine.plan import VECTOR, Algorithm, AttentionLayer, Buffer, Instruction, Plan
from fastdiff.unet import UNet
from fastdiff.unet_blocks import (
    AttentionBlock,
    Block,
    Conv3x3,
    Downsample,
    Dropout,
    GroupNormAct,
    ResBlock,
    Upsample,
)

__all__ = ["Unsupported", "lower"]

_KNOWN = {UNet, Block, ResBlock, AttentionBlock, Downsample, Upsample, GroupNormAct, Conv3x3, Dropout}
_KNOWN |= {nn.Conv2d, nn.Linear, nn.SiLU, nn.Embedding, nn.Identity, nn.ModuleList, nn.Sequential}


# Input times output channels of a layer whose transformed weights, 144 bytes each, come from a cache.
CACHED_PRODUCTS = 1 << 13


class Unsupported(ValueError):
    """A part of the network that the engine cannot run; the message names it."""


def lower(unet: UNet, height: int, width: int) -> Plan:
    """The plan of a network for images of height x width pixels.

    Args:
        unet: The network; its weights are not looked at.
        height, width: Positive multiples of `unet.config.size_divisor`.

    Raises:
        ValueError: the size does not fit.
        Unsupported: a module that has no instruction.
    """
    divisor = unet.config.size_divisor
    if height < divisor or width < divisor or height % divisor or width % divisor:
        raise ValueError(f"height and width must be positive multiples of {divisor}, got {height} x {width}")
    for name, module in unet.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise Unsupported(f"the engine does not call hooks, and {name or 'the network'} has one")
        # A subclass, a parametrised layer or another forward may compute anything.
        if type(module) not in _KNOWN or "forward" in module.__dict__:
            raise Unsupported(f"the engine has no instruction for {name or 'the network'} ({type(module).__name__})")
    return _Lowering(unet).run(height, width)


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


class _Lowering:
    def __init__(self, unet: UNet) -> None:
        self.unet = unet
        self.names = {module: name for name, module in unet.named_modules()}
        self.buffers: list[Buffer] = []
        self.instructions: list[Instruction] = []
        self.projections: list[str] = []
        self.time_width = 0
        self.statistics: dict[int, int] = {}

    def run(self, height: int, width: int) -> Plan:
        unet = self.unet
        image = self.buffer(height, width, unet.config.in_channels)
        x, skips = image, []
        for block in unet.input_blocks:
            x = self.block(block, (x,))
            skips.append(x)
        x = self.block(unet.middle_block, (x,))
        for block in unet.output_blocks:
            x = self.block(block, (x, skips.pop()))
        norm = self.norm(unet.norm_out, (x,))
        output = self.conv(unet.conv_out, (x,), norm=norm, act=unet.norm_out.act)
        return Plan(
            tuple(self.buffers), tuple(self.instructions), image, output, tuple(self.projections), self.time_width
        )

    def buffer(self, height: int, width: int, channels: int) -> int:
        self.buffers.append(Buffer(height, width, channels))
        return len(self.buffers) - 1

    def emit(self, instruction: Instruction) -> int:
        self.instructions.append(instruction)
        return instruction.target

    def block(self, layers: nn.Module, sources: tuple[int, ...]) -> int:
        for layer in layers.children():
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
            elif isinstance(layer, nn.Conv2d):
                x = self.conv(layer, (x,))
            else:
                raise Unsupported(f"the engine has no instruction for {self.names[layer]} ({type(layer).__name__})")
            sources = (x,)
        (x,) = self.single(layers, sources)
        return x

    def single(self, module: nn.Module, sources: tuple[int, ...]) -> tuple[int]:
        if len(sources) != 1:
            raise Unsupported(f"the engine cannot run {self.names[module]} on a concatenation")
        return (sources[0],)

    def res_block(self, block: ResBlock, sources: tuple[int, ...]) -> int:
        norm = self.norm(block.norm1, sources)
        channels = block.conv1.out_channels
        time = self.time(block.emb_proj)
        added, scaled = (None, time) if block.scale_shift else (time, None)
        if block.resample == "down":
            (x,) = self.single(block, sources)
            h = self.conv(block.conv1, (self.pool(x, norm, block.norm1.act),), time=added)
            sources = (self.pool(x),)
        elif block.resample == "up":
            (x,) = self.single(block, sources)
            h = self.conv(block.conv1, sources, norm=norm, act=block.norm1.act, upsample=True, time=added)
            sources = (self.repeat(x),)
        else:
            h = self.conv(block.conv1, sources, norm=norm, act=block.norm1.act, time=added)
        assert self.buffers[h].channels == channels
        norm = self.norm(block.norm2, (h,), scaled)
        if isinstance(block.skip, nn.Identity):
            (residual,) = self.single(block, sources)
        else:
            residual = self.conv(block.skip, sources)
        return self.conv(block.conv2, (h,), norm=norm, act=block.norm2.act, residual=residual)

    def attention(self, block: AttentionBlock, x: int) -> int:
        buffer = self.buffers[x]
        norm = self.norm(block.norm, (x,))
        if block.num_heads == 1 and buffer.channels % VECTOR == 0:
            # Half of the linear layers' work: see fastdiff.engine.pack.
            out = self.buffer(buffer.height, buffer.width, buffer.channels)
            qv = self.conv(block.qkv, (x,), norm=norm, qkv="folded", channels=2 * buffer.channels)
            return self.emit(Instruction("attention", (qv, x), out, norm=norm, residual=x))
        # Heads come in whole vectors, with zeros behind.
        width = block.num_heads * -(-buffer.channels // block.num_heads // VECTOR) * VECTOR
        qkv = self.conv(block.qkv, (x,), norm=norm, heads=block.num_heads, qkv="packed", channels=3 * width)
        out = self.buffer(buffer.height, buffer.width, width)
        self.emit(Instruction("attention", (qkv,), out, heads=block.num_heads))
        return self.conv(block.proj, (out,), residual=x, heads=block.num_heads, qkv="projection")

    def norm(self, module: GroupNormAct, sources: tuple[int, ...], time: int | None = None) -> int:
        for source in sources:
            if source not in self.statistics:
                target = self.buffer(2, 1, self.buffers[source].channels)
                self.statistics[source] = self.emit(Instruction("stats", (source,), target))
        channels = sum(self.buffers[n].channels for n in sources)
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
            )
        )

    def conv(
        self,
        module: nn.Conv2d | nn.Linear | nn.Module,
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
    ) -> int:
        if isinstance(module, nn.Conv2d):
            kernel, width = module.kernel_size[0], module.out_channels
        elif isinstance(module, nn.Linear):
            kernel, width = 1, module.out_features if channels is None else channels
        else:
            raise Unsupported(f"the engine has no instruction for {self.names[module]} ({type(module).__name__})")
        first = self.buffers[sources[0]]
        scale = 2 if upsample else 1
        target = self.buffer(first.height * scale // stride, first.width * scale // stride, width)
        instruction = Instruction(
            "conv",
            sources,
            target,
            kernel=kernel,
            stride=stride,
            pad=kernel // 2 if pad is None else pad,
            upsample=upsample,
            act=act,
            norm=norm,
            residual=residual,
            parameter=self.names[module],
            time=time,
            heads=heads,
            qkv=qkv,
        )
        channels_in = sum(self.buffers[n].channels for n in sources)
        algorithm = choose_algorithm(kernel, stride, channels_in, self.buffers[target])
        return self.emit(replace(instruction, algorithm=algorithm))

    def pool(self, x: int, norm: int | None = None, act: bool = False) -> int:
        buffer = self.buffers[x]
        target = self.buffer(buffer.height // 2, buffer.width // 2, buffer.channels)
        return self.emit(Instruction("pool", (x,), target, norm=norm, act=act))

    def repeat(self, x: int) -> int:
        buffer = self.buffers[x]
        target = self.buffer(2 * buffer.height, 2 * buffer.width, buffer.channels)
        return self.emit(Instruction("repeat", (x,), target))

    def time(self, projection: nn.Linear) -> int:
        start = self.time_width
        self.projections.append(self.names[projection])
        self.time_width += projection.out_features
        return start
