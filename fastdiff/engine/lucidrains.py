"""From lucidrains' `Unet` to its plan, and its layers' parameters as the plan has them."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.engine.lower import (
    CONVOLUTION,
    Unsupported,
    check_modules,
    choose_algorithm,
    remember_forwards,
    told,
)
from fastdiff.engine.plan import VECTOR, AttentionLayer, Instruction, Op, Plan, PlanBuilder
from fastdiff.nets import lucidrains as nets
from fastdiff.nets import lucidrains_variants as variants

__all__ = ["KINDS", "SETTINGS", "layer_parameters", "lower_lucidrains", "waves"]

# What a plan takes from modules besides their parameters.
SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nets.Unet: ("channels", "out_dim", "self_condition"),
    variants.VariantUnet: ("channels", "out_dim", "self_condition", "parts"),
    nets._RMSNorm: ("scale",),
    variants.LayerNorm: ("eps",),
    nn.GroupNorm: ("num_groups", "eps"),
    nets._Sinusoid: ("num_waves", "theta"),
    nets._LinearAttention: ("heads", "divides_values"),
    nets._Attention: ("heads",),
    nn.Conv2d: CONVOLUTION,
    variants.StandardizedConv2d: CONVOLUTION,
    nn.GELU: ("approximate",),
    nn.Upsample: ("scale_factor", "mode", "size"),
}
KINDS: tuple[type[nn.Module], ...] = (
    *SETTINGS, nets._Block, nets._ResnetBlock, nets._FourierFeatures, nets._HalveByPixels, nn.Linear, nn.SiLU,
    nn.Dropout, nn.Identity, nn.ModuleList, nn.Sequential,
)  # fmt: skip
remember_forwards(KINDS)


def lower_lucidrains(unet: nets.Unet, height: int, width: int) -> Plan:
    """The plan of a network for images of height x width pixels.

    Its input has the channels of the image, after those of its last prediction where it is self-conditioned.

    Raises:
        ValueError: the size is no multiple of `unet.downsample_factor`, or of an image of one row it is not one row.
        Unsupported: a module that has no instruction.
    """
    rows, columns = unet.divisors
    if height < 1 or width < 1 or height % rows or width % columns or (unet.is_flat and height > 1):
        expected = (
            f"one row, and columns that are multiples of {columns}" if unet.is_flat else f"multiples of {columns}"
        )
        raise ValueError(f"height and width must be positive, {expected}, got {height} x {width}")
    check_modules(unet, KINDS)
    return _Lowering(unet).run(height, width)


def waves(unet: nets.Unet, t: Tensor) -> Tensor:
    """What the first linear layer is given of times [B]."""
    features = unet.time_mlp[0]
    made: Tensor = features(t.float() if t.dtype == torch.float64 else t)
    return made


class _Lowering(PlanBuilder):
    def __init__(self, unet: nets.Unet) -> None:
        super().__init__(unet)
        self.unet = unet
        self.is_flat = unet.is_flat
        self.embedding = 0

    def run(self, height: int, width: int) -> Plan:
        unet = self.unet
        self.check_embedding()
        image = self.buffer(height, width, unet.channels * (2 if unet.self_condition else 1))
        first = x = self.conv(unet.init_conv, (image,))
        kept = []
        for level in unet.downs:
            res1, res2, attention, down = self.level(level)
            x = self.res_block(res1, (x,))
            kept.append(x)
            x = self.attention(attention, self.res_block(res2, (x,)))
            kept.append(x)
            x = self.down(down, x)
        x = self.attention(unet.mid_attn, self.res_block(unet.mid_block1, (x,)))
        x = self.res_block(unet.mid_block2, (x,))
        for level in unet.ups:
            res1, res2, attention, up = self.level(level)
            x = self.res_block(res1, (x, kept.pop()))
            x = self.attention(attention, self.res_block(res2, (x, kept.pop())))
            x = self.up(up, x)
        x = self.res_block(unet.final_res_block, (x, first))
        output = self.conv(unet.final_conv, (x,))
        if self.buffers[output].channels != unet.out_dim:
            raise Unsupported(
                f"final_conv makes {self.buffers[output].channels} channels, and out_dim is {unet.out_dim}"
            )
        return self.plan(image, output)

    def level(self, level: nn.Module) -> list[nn.Module]:
        parts = list(level) if isinstance(level, nn.ModuleList) else []
        if len(parts) != 4:
            raise self.unknown(level)
        return parts

    def pair(self, module: nn.Module) -> list[nn.Module]:
        layers = list(module) if isinstance(module, nn.Sequential) else []
        if len(layers) != 2:
            raise self.unknown(module)
        return layers

    def unknown(self, module: nn.Module) -> Unsupported:
        return Unsupported(f"the engine has no instruction for {told(self.names[module], module)} in its place")

    def shaped(self, module: nn.Module, name: str, shape: tuple[int, ...]) -> None:
        """A parameter has the shape that the executor relies on."""
        value = getattr(module, name)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            found = list(value.shape) if isinstance(value, Tensor) else value
            raise Unsupported(f"the engine expects {self.names[module]}.{name} of shape {list(shape)}, got {found}")

    def check_embedding(self) -> None:
        """What happens to times has no instructions, so it must be as `Unet` makes it."""
        layers = list(self.unet.time_mlp)
        kinds = [type(layer) for layer in layers[1:]]
        if kinds != [nn.Linear, nn.GELU, nn.Linear] or cast(nn.GELU, layers[2]).approximate != "none":
            raise Unsupported(f"the engine has no instruction for time_mlp: {self.unet.time_mlp}")
        first, last = cast(nn.Linear, layers[1]), cast(nn.Linear, layers[3])
        if not isinstance(layers[0], nets._Sinusoid | nets._FourierFeatures):
            raise self.unknown(layers[0])
        self.embedding = last.weight.shape[0]
        self.shaped(first, "bias", (last.weight.shape[1],))
        self.shaped(last, "bias", (self.embedding,))

    def res_block(self, block: nn.Module, sources: tuple[int, ...]) -> int:
        if not isinstance(block, nets._ResnetBlock):
            raise self.unknown(block)
        mlp = list(block.mlp) if isinstance(block.mlp, nn.Sequential) else []
        if [type(layer) for layer in mlp] != [nn.SiLU, nn.Linear]:
            raise self.unknown(block)
        h = self.conv(self.part(block.block1).proj, sources)
        time, width = self.time_width, self.buffers[h].channels
        self.shaped(mlp[1], "weight", (2 * width, self.embedding))
        self.shaped(mlp[1], "bias", (2 * width,))
        self.projections.append(self.names[mlp[1]])
        self.time_width += 2 * width
        first, second = self.part(block.block1), self.part(block.block2)
        if isinstance(first.norm, nn.GroupNorm):
            h = self.conv(second.proj, (h,), norm=self.group_norm(first.norm, h, time))
        else:
            h = self.conv(second.proj, (self.pixel_norm(first.norm, h, act=True, time=time),))
        if isinstance(block.res_conv, nn.Identity):
            if len(sources) != 1:
                raise Unsupported(f"the engine cannot run {self.names[block]} on a concatenation")
            residual = sources[0]
        else:
            residual = self.conv(block.res_conv, sources)
        if not isinstance(second.norm, nn.GroupNorm):
            return self.pixel_norm(second.norm, h, act=True, residual=residual)
        buffer, factors = self.buffers[h], self.group_norm(second.norm, h)
        target = self.buffer(buffer.height, buffer.width, buffer.channels)
        return self.emit(Instruction("pixel_norm", (h,), target, act=True, norm=factors, residual=residual))

    def group_norm(self, norm: nn.GroupNorm, x: int, time: int | None = None) -> int:
        """The factors and offsets of a group norm."""
        buffer = self.buffers[x]
        self.shaped(norm, "weight", (buffer.channels,))
        self.shaped(norm, "bias", (buffer.channels,))
        stats = self.emit(Instruction("stats", (x,), self.buffer(2, 1, buffer.channels)))
        return self.emit(
            Instruction(
                "norm",
                (x,),
                self.buffer(2, 1, buffer.channels),
                stats=(stats,),
                parameter=self.names[norm],
                time=time,
                groups=norm.num_groups,
                eps=norm.eps,
            )
        )

    def part(self, block: nn.Module) -> nets._Block:
        if not isinstance(block, nets._Block) or not isinstance(block.dropout, nn.Dropout | nn.Identity):
            raise self.unknown(block)
        return block

    def attention(self, block: nn.Module, x: int) -> int:
        if not isinstance(block, nets._Attention | nets._LinearAttention):
            raise self.unknown(block)
        linear = isinstance(block, nets._LinearAttention)
        buffer, heads = self.buffers[x], block.heads
        inner = block.to_qkv.weight.shape[0] // 3
        size, memory = inner // heads, block.mem_kv.shape[3 if linear else 2]
        self.shaped(block, "mem_kv", (2, heads, size, memory) if linear else (2, heads, memory, size))
        self.shaped(block.to_qkv, "weight", (3 * heads * size, buffer.channels, 1, 1))
        if block.to_qkv.bias is not None:
            raise self.unknown(block.to_qkv)
        out, norm = self.pair(block.to_out) if linear else (block.to_out, None)
        self.shaped(out, "weight", (buffer.channels, heads * size, 1, 1))
        # Heads come in whole vectors, with zeros behind.
        width = heads * -(-size // VECTOR) * VECTOR
        divides = linear and block.divides_values
        qkv = self.conv(
            block.to_qkv, (self.pixel_norm(block.norm, x),), qkv="heads", heads=heads, channels=3 * width,
            gain=1 / (buffer.height * buffer.width) if divides else 1.0,
        )  # fmt: skip
        op: Op = "linear_attention" if linear else "memory_attention"
        result = self.buffer(buffer.height, buffer.width, width)
        name = self.names[block]
        self.emit(Instruction(op, (qkv,), result, heads=heads, groups=size, memory=memory, parameter=name))
        if not linear:
            return self.conv(out, (result,), qkv="joined", heads=heads, channels=buffer.channels, residual=x)
        projected = self.conv(out, (result,), qkv="joined", heads=heads, channels=buffer.channels)
        assert norm is not None
        return self.pixel_norm(norm, projected, residual=x)

    def pixel_norm(
        self, norm: nn.Module, x: int, *, act: bool = False, time: int | None = None, residual: int | None = None
    ) -> int:
        if not isinstance(norm, nets._RMSNorm | variants.LayerNorm):
            raise self.unknown(norm)
        buffer = self.buffers[x]
        self.shaped(norm, "g", (1, buffer.channels, 1, 1))
        eps = 0.0
        if isinstance(norm, variants.LayerNorm):
            self.shaped(norm, "b", (1, buffer.channels, 1, 1))
            eps = norm.eps
        target = self.buffer(buffer.height, buffer.width, buffer.channels)
        return self.emit(
            Instruction(
                "pixel_norm", (x,), target, act=act, time=time, residual=residual, parameter=self.names[norm], eps=eps
            )
        )

    def down(self, module: nn.Module, x: int) -> int:
        if not isinstance(module, nn.Sequential):
            halves = isinstance(module, nn.Conv2d) and module.stride[1] == 2
            return self.conv(module, (x,), stride=2 if halves else 1)
        halve, conv = self.pair(module)
        if not isinstance(halve, nets._HalveByPixels):
            raise self.unknown(halve)
        # The pixels of a square as channels, and a product of them: a convolution of 2 x 2 pixels.
        return self.conv(conv, (x,), halved=True)

    def up(self, module: nn.Module, x: int) -> int:
        if not isinstance(module, nn.Sequential):
            return self.conv(module, (x,))
        double, conv = self.pair(module)
        factor = (1, 2) if self.is_flat else 2
        if not isinstance(double, nn.Upsample) or (double.scale_factor, double.mode) != (factor, "nearest"):
            raise self.unknown(double)
        return self.conv(conv, (x,), upsample=True)

    def conv(
        self,
        module: nn.Module,
        sources: tuple[int, ...],
        *,
        upsample: bool = False,
        halved: bool = False,
        stride: int = 1,
        norm: int | None = None,
        residual: int | None = None,
        qkv: AttentionLayer = "",
        heads: int = 1,
        channels: int | None = None,
        gain: float = 1.0,
    ) -> int:
        if not isinstance(module, nn.Conv2d):
            raise self.unknown(module)
        channels_in = sum(self.buffers[n].channels for n in sources)
        kernel, pad = module.kernel_size[1], 1 if stride == 2 else module.kernel_size[1] // 2
        # An image of one row meets one row of a kernel.
        rows, row_pad = (1, 0) if self.is_flat else (kernel, pad)
        expected = [(rows, kernel), (1 if self.is_flat else stride, stride), (row_pad, pad), (1, 1), 1, "zeros"]
        found = [getattr(module, name) for name in CONVOLUTION]
        if kernel not in ((4,) if stride == 2 else (1, 3, 7)) or found != expected:
            raise Unsupported(f"the engine has no instruction for {self.names[module]}: {module}")
        if not qkv:
            width_in = (4 if halved else 1) * channels_in
            self.shaped(module, "weight", (module.weight.shape[0], width_in, rows, kernel))
        if module.bias is not None:
            self.shaped(module, "bias", (module.weight.shape[0],))
        if halved:
            kernel, stride, pad = 2, 2, 0
        first, scale = self.buffers[sources[0]], 2 if upsample else 1
        width = module.weight.shape[0] if channels is None else channels
        height = 1 if self.is_flat else first.height * scale // stride
        target = self.buffer(height, first.width * scale // stride, width)
        instruction = Instruction(
            "conv", sources, target, kernel=kernel, stride=stride, pad=pad, upsample=upsample, norm=norm,
            act=norm is not None, residual=residual, parameter=self.names[module], heads=heads, qkv=qkv, gain=gain,
        )  # fmt: skip
        algorithm = "direct" if self.is_flat else choose_algorithm(kernel, stride, channels_in, self.buffers[target])
        return self.emit(replace(instruction, algorithm=algorithm))


def layer_parameters(unet: nets.Unet, instruction: Instruction) -> tuple[Tensor, Tensor]:
    """Weight and bias of an instruction: of a convolution as its own, else as the executor reads them."""
    module = unet.get_submodule(instruction.parameter)
    if isinstance(module, nets._RMSNorm):
        gain = module.g.detach().double().flatten() * module.scale
        return gain, gain.new_zeros(0)
    if isinstance(module, variants.LayerNorm):
        return module.g.detach().flatten(), module.b.detach().flatten()
    if isinstance(module, nn.GroupNorm):
        return module.weight.detach(), module.bias.detach()
    if isinstance(module, nets._Attention | nets._LinearAttention):
        kv = module.mem_kv.detach()
        kv = kv.transpose(2, 3) if isinstance(module, nets._LinearAttention) else kv
        return F.pad(kv, (0, -kv.shape[3] % VECTOR)), kv.new_zeros(0)
    assert isinstance(module, nn.Conv2d)
    weight, bias = module.weight.detach(), module.bias
    if isinstance(module, variants.StandardizedConv2d):
        with torch.no_grad():
            weight = variants.standardized(module.weight.double())
    if instruction.qkv == "heads":
        q, k, v = weight.double().flatten(1).chunk(3)
        if isinstance(unet.get_submodule(instruction.parameter.rpartition(".")[0]), nets._Attention):
            q = q * (len(q) // instruction.heads) ** -0.5
        v = v * instruction.gain
        weight = torch.cat([_with_zeros(part, instruction.heads) for part in (q, k, v)])
    elif instruction.qkv == "joined":
        weight = _with_zeros(weight.flatten(1).T, instruction.heads).T
    elif instruction.kernel == 2:
        weight = weight.reshape(len(weight), -1, 2, 2)
    elif weight.shape[2] < weight.shape[3]:
        # The row that meets an image of one row; the others meet zeros.
        weight = F.pad(weight, (0, 0, instruction.pad, instruction.kernel - 1 - instruction.pad))
    return weight, weight.new_zeros(len(weight)) if bias is None else bias.detach()


def _with_zeros(rows: Tensor, heads: int) -> Tensor:
    """[heads * d, C] with zeros behind each head, up to whole vectors."""
    parts = rows.unflatten(0, (heads, -1))
    return F.pad(parts, (0, 0, 0, -parts.shape[1] % VECTOR)).flatten(0, 1)
