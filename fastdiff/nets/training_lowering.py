"""From a `UNet` to the plan of its training.

Every block notes, as it is lowered, how its gradients come about; these notes are read in reverse.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn

from fastdiff.nets.blocks import (
    AttentionBlock,
    Block,
    Conv1x1,
    Downsample,
    Dropout,
    GroupNormAct,
    Linear,
    ResBlock,
    SiLU,
    Upsample,
)
from fastdiff.nets.training_layers import VECTOR, Layers, check_conv, expect
from fastdiff.nets.training_plan import Image, TrainingPlan, Unplanned
from fastdiff.process.noise import factor_of_kept, last_kept

if TYPE_CHECKING:
    from fastdiff.nets.unet import UNet

__all__ = ["Lowering", "is_dense", "lower_training", "planned_parameters"]

# Of a network whose samples go through it by themselves, for each thread packs all of the weights, and what their
# gradients read is kept: weights, and floats of a sample.
_MOST_WEIGHTS, _MOST_FLOATS = 1 << 22, 1 << 18


def lower_training(unet: UNet, height: int, width: int) -> TrainingPlan:
    """The plan of a `UNet` for images of height x width pixels.

    Args:
        unet: The network, of modules as `fastdiff.nets.unet` makes them.
        height, width: Multiples of its divisor.

    Raises:
        Unplanned: channels that are no multiples of 16, images below 4 x 4, a layout of heads or a dropout that has no
            instruction.
    """
    return Lowering(unet).run(height, width)


def planned_parameters(unet: UNet) -> list[Tensor]:
    """The parameters of a plan in the order of their numbers: all but the labels' table."""
    labels = unet.label_emb
    table = None if labels is None else labels.weight
    return [parameter for parameter in unet.parameters() if parameter is not table]


class Lowering(Layers):
    """Takes a `UNet` down, block by block."""

    def __init__(self, unet: UNet) -> None:
        super().__init__(planned_parameters(unet))
        self.unet = unet
        self.back: list[Callable[[], None]] = []
        self.num_dropouts = 0
        # What the blocks see of time and label.
        self.emb: Image

    def run(self, height: int, width: int) -> TrainingPlan:
        unet = self.unet
        config = unet.config
        if not all(map(is_dense, planned_parameters(unet))):
            raise Unplanned("parameters that do not lie as a network's own do")
        x = self.image(height, width, config.in_channels)
        waves, label = self.embed(config.channels, config.num_classes is not None)
        h, skips = self.first(x, cast(nn.Conv2d, cast(Block, unet.input_blocks[0])[0])), []
        skips.append(h)
        for block in list(unet.input_blocks)[1:]:
            h = self.block(cast(Block, block), h)
            skips.append(h)
        h = self.block(unet.middle_block, h)
        for block in unet.output_blocks:
            h = self.block(cast(Block, block), h, skips.pop())
        output = self.last(h, unet.norm_out, unet.conv_out)
        forward = len(self.code)
        slope = self.grads[output.buffer] = self.like(output)
        while self.back:
            self.back.pop()()
        label_grad = None if label is None else self.grads[label.buffer].buffer
        given = [image.buffer for image in (x, waves, label) if image is not None]
        ends = ([output.buffer], [slope.buffer], [] if label_grad is None else [label_grad])
        alone, in_order = None, list(self.code)
        if sum(parameter.numel() for parameter in planned_parameters(unet)) <= _MOST_WEIGHTS:
            alone = self.set_weights_last(forward)
        places, floats = self.place(forward, given, *ends, apart=alone)
        if alone is not None and floats > _MOST_FLOATS:
            alone, self.code = None, in_order
            places, floats = self.place(forward, given, *ends, apart=None)
        rows = torch.from_numpy(self.rows(places))

        return TrainingPlan(
            rows[:forward].clone(), rows[forward:].clone(), floats, places[x.buffer], places[waves.buffer],
            places[output.buffer], places[slope.buffer], None if label is None else places[label.buffer],
            None if label_grad is None else places[label_grad], output.channels, self.emb.channels, alone,
        )  # fmt: skip

    def embed(self, channels: int, has_labels: bool) -> tuple[Image, Image | None]:
        """What the blocks see of time and label; gives the embedded time and the embedded label."""
        layers: list[nn.Module] = list(self.unet.time_embed)
        if len(layers) != 3:
            raise Unplanned(f"an embedding of {len(layers)} layers")
        expect(Linear, layers[0], layers[2])
        expect(SiLU, layers[1])
        first, second = cast(nn.Linear, layers[0]), cast(nn.Linear, layers[2])
        waves = self.vector(channels)
        hidden = self.linear(waves, first.weight, first.bias, first.out_features)
        active = self.alike("silu", hidden)
        summed = self.linear(active, second.weight, second.bias, second.out_features)
        label = self.vector(second.out_features) if has_labels else None
        total = summed if label is None else self.alike("add", summed, label)
        self.emb = self.alike("silu", total)

        def back() -> None:
            dtotal = self.alike("silu_grad", total, self.take(self.emb))
            if label is not None:
                self.grads[label.buffer] = dtotal
            self.linear_grad(active, dtotal, second.weight, second.bias)
            dactive = self.linear_back(dtotal, second.weight, active.channels)
            self.linear_grad(waves, self.alike("silu_grad", hidden, dactive), first.weight, first.bias)

        self.back.append(back)
        return waves, label

    def first(self, x: Image, conv: nn.Conv2d) -> Image:
        """The first convolution. It has few channels to read: their pixels under the kernel are a linear layer's."""
        check_conv(conv, 3, 1, 1)
        columns = self.unfold(x, 1, 1, x.height, x.width)
        y = self.linear(columns, conv.weight, conv.bias, conv.out_channels)
        self.back.append(lambda: self.linear_grad(columns, self.take(y), conv.weight, conv.bias))
        return y

    def last(self, h: Image, norm: GroupNormAct, conv: nn.Conv2d) -> Image:
        """Norm and last convolution. It has few channels to write: a linear layer gives each pixel's part in all those
        around it, which are then summed.
        """
        check_conv(conv, 3, 1, 1)
        expect(GroupNormAct, norm)
        n, common = self.norm(h, norm)
        columns = self.linear(n, conv.weight, None, 9 * conv.out_channels)
        y = self.image(h.height, h.width, conv.out_channels)
        self.emit(
            "fold", x=columns.buffer, channels=y.channels, y=y.buffer, height_out=y.height, width_out=y.width, pad=1,
            transposed=1, bias=self.number(conv.bias), **h.size,
        )  # fmt: skip

        def back() -> None:
            dy = self.take(y)
            dcolumns = self.unfold(dy, 1, 1, y.height, y.width, transposed=True)
            self.sums(dy, conv.bias)
            self.linear_grad(n, dcolumns, conv.weight, None)
            dn = self.linear_back(dcolumns, conv.weight, n.channels)
            self.norm_back(common, dn, dn)
            self.grads[h.buffer] = dn

        self.back.append(back)
        return y

    def block(self, block: Block, x: Image, x2: Image | None = None) -> Image:
        """Layers one behind the other; the first one reads both images."""
        for layer in block:
            if isinstance(layer, ResBlock):
                x = self.res_block(layer, x, x2)
            elif x2 is not None:
                raise Unplanned("a block of two images that does not begin with a residual block")
            elif isinstance(layer, AttentionBlock):
                x = self.attention(layer, x)
            elif isinstance(layer, Downsample):
                x = self.downsample(layer, x)
            elif isinstance(layer, Upsample):
                x = self.upsample(layer, x)
            else:
                raise Unplanned(f"a layer of the class {type(layer).__name__}")
            x2 = None
        return x

    def res_block(self, block: ResBlock, x: Image, x2: Image | None) -> Image:
        expect(GroupNormAct, block.norm1, block.norm2)
        expect(Linear, block.emb_proj)
        expect(Dropout, block.dropout)
        skip = block.skip if isinstance(block.skip, Conv1x1) else None
        if skip is None:
            expect(nn.Identity, block.skip)
        if x2 is not None and (skip is None or block.resample != "none"):
            raise Unplanned("a residual block of two images that adds them to its result, or changes their size")
        n1, common1 = self.norm(x, block.norm1, x2)
        h, beside = n1, x
        if block.resample != "none":
            up, factor = block.resample == "up", 1.0 if block.resample == "up" else 0.25
            h, beside = (self.resample(image, up, factor=factor) for image in (n1, x))
        h1 = self.conv(h, block.conv1)
        emb = self.linear(self.emb, block.emb_proj.weight, block.emb_proj.bias, block.emb_proj.out_features)
        scale, time = (emb.buffer, -1) if block.scale_shift else (-1, emb.buffer)
        n2, common2 = self.norm(h1, block.norm2, time=time, scale=scale)
        h2, masks = self.dropout(n2, block.dropout.p)
        shortcut = beside
        if skip is not None:
            check_conv(skip, 1, 1, 0)
            shortcut = self.linear(beside, skip.weight, skip.bias, skip.out_channels, x2)
        y = self.conv(h2, block.conv2, shortcut.buffer)

        def back() -> None:
            dy = self.take(y)
            d2 = self.conv_back(h2, dy, block.conv2)
            dbeside = dy
            if skip is not None:
                self.linear_grad(beside, dy, skip.weight, skip.bias, x2)
                dbeside = self.linear_back(dy, skip.weight, n1.channels)
            if masks is not None:
                self.emit("dropout", x=d2.buffer, y=d2.buffer, **masks)
            demb = self.like(emb)
            told_back = {"emb": demb.buffer} if block.scale_shift else {"total": demb.buffer}
            self.norm_back(common2, d2, d2, **told_back)
            self.linear_grad(self.emb, demb, block.emb_proj.weight, block.emb_proj.bias)
            self.grads[self.emb.buffer] = self.linear_back(
                demb, block.emb_proj.weight, self.emb.channels, self.so_far(self.emb)
            )
            d1 = self.conv_back(h, d2, block.conv1)
            if block.resample != "none":
                back_factor = 0.25 if block.resample == "down" else 1.0
                d1, dbeside = (
                    self.resample(image, block.resample == "down", factor=back_factor) for image in (d1, dbeside)
                )
            more = self.so_far(x)
            if x2 is None:
                # Vector by vector it takes the place of what was read for it.
                self.norm_back(common1, d1, d1, added=dbeside.buffer, more=more)
                self.grads[x.buffer] = d1
            else:
                assert more < 0
                assert x2.buffer not in self.grads
                dx, dx2 = self.grads[x.buffer], self.grads[x2.buffer] = self.like(x), self.like(x2)
                self.norm_back(common1, d1, dx, y2=dx2.buffer, added=dbeside.buffer)

        self.back.append(back)
        return y

    def dropout(self, x: Image, p: float) -> tuple[Image, dict[str, int | float] | None]:
        """The result, and what the way back has in common with it, None where nothing is dropped."""
        number = self.num_dropouts
        self.num_dropouts += 1
        if p == 0:
            return x, None
        if not 0 < p < 1:
            raise Unplanned(f"a dropout of {p}")
        masks: dict[str, int | float] = {
            "channels": x.channels, "layer": number, "last_kept": last_kept(p), "number": factor_of_kept(p),
            **x.size,
        }  # fmt: skip
        y = self.like(x)
        self.emit("dropout", x=x.buffer, y=y.buffer, **masks)
        return y, masks

    def attention(self, block: AttentionBlock, x: Image) -> Image:
        expect(GroupNormAct, block.norm)
        expect(Linear, block.qkv, block.proj)
        heads = block.num_heads
        if block.layout == "edm" or x.channels % (VECTOR * heads):
            raise Unplanned(
                f"attention of {heads} heads of {x.channels // heads} channels in the layout {block.layout!r}"
            )
        n, common = self.norm(x, block.norm)
        qkv = self.linear(n, block.qkv.weight, block.qkv.bias, 3 * x.channels)
        out = self.like(x)
        head = {
            "channels": x.channels, "heads": heads, "heads_first": block.layout == "legacy",
            "stats": self.buffer(heads * x.height * x.width), "number": 1 / math.sqrt(x.channels // heads), **x.size,
        }  # fmt: skip
        self.emit("attention", x=qkv.buffer, y=out.buffer, **head)
        y = self.linear(out, block.proj.weight, block.proj.bias, x.channels, added=x.buffer)

        def back() -> None:
            dy = self.take(y)
            self.linear_grad(out, dy, block.proj.weight, block.proj.bias)
            dout = self.linear_back(dy, block.proj.weight, x.channels)
            dqkv = self.like(qkv)
            self.emit("attention_grad", x=qkv.buffer, x2=out.buffer, dy=dout.buffer, y=dqkv.buffer, **head)
            self.linear_grad(n, dqkv, block.qkv.weight, block.qkv.bias)
            dn = self.linear_back(dqkv, block.qkv.weight, x.channels)
            self.norm_back(common, dn, dn, added=dy.buffer, more=self.so_far(x))
            self.grads[x.buffer] = dn

        self.back.append(back)
        return y

    def downsample(self, layer: Downsample, x: Image) -> Image:
        conv = layer.conv
        if conv is None:
            y = self.resample(x, up=False, factor=0.25)

            def back_of_pool() -> None:
                self.grads[x.buffer] = self.resample(self.take(y), up=True, factor=0.25, added=self.so_far(x))

            self.back.append(back_of_pool)
            return y
        pad = 1 if layer.padding == "symmetric" else 0
        check_conv(conv, 3, 2, pad)
        columns = self.unfold(x, 2, pad, x.height // 2, x.width // 2)
        y = self.linear(columns, conv.weight, conv.bias, conv.out_channels)

        def back() -> None:
            dy = self.take(y)
            # Once more: kept, they would take more room than all else of this layer.
            again = self.unfold(x, 2, pad, x.height // 2, x.width // 2)
            self.linear_grad(again, dy, conv.weight, conv.bias)
            dcolumns, dx = self.linear_back(dy, conv.weight, again.channels), self.like(x)
            self.emit(
                "fold", x=dcolumns.buffer, channels=x.channels, y=dx.buffer, height=dy.height, width=dy.width,
                height_out=x.height, width_out=x.width, stride=2, pad=pad, added=self.so_far(x),
            )  # fmt: skip
            self.grads[x.buffer] = dx

        self.back.append(back)
        return y

    def upsample(self, layer: Upsample, x: Image) -> Image:
        large = self.resample(x, up=True, factor=1.0)
        y = large if layer.conv is None else self.conv(large, layer.conv)

        def back() -> None:
            dlarge = dy = self.take(y)
            if layer.conv is not None:
                dlarge = self.conv_back(self.resample(x, up=True, factor=1.0), dy, layer.conv)
            self.grads[x.buffer] = self.resample(dlarge, up=False, factor=1.0, added=self.so_far(x))

        self.back.append(back)
        return y


def is_dense(parameter: Tensor) -> bool:
    """Whether a parameter lies as [C_out, (H, W,) C_in]."""
    return (parameter.permute(0, 2, 3, 1) if parameter.ndim == 4 else parameter).is_contiguous()
