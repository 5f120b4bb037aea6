"""From an `EncoderUNet` to the plan of its features, and of the images' gradient.

The instructions are those of training (`fastdiff.nets.training_plan`) without the gradients of weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from fastdiff.nets.blocks import Block
from fastdiff.nets.training_layers import Layers, check_conv, expect
from fastdiff.nets.training_lowering import Lowering, is_dense
from fastdiff.nets.training_plan import Image, Unplanned

if TYPE_CHECKING:
    from fastdiff.nets.encoder import EncoderUNet

__all__ = ["EncoderPlan", "lower_encoder"]

# As `fastdiff.nets.training_lowering` has them: of a network whose samples go through it by themselves.
_MOST_WEIGHTS, _MOST_FLOATS = 1 << 22, 1 << 18


@dataclass(frozen=True)
class EncoderPlan:
    """A classifier's features for one image size.

    Attributes:
        forward, backward: Instructions, int64 [n, len(FIELDS)]; no backward where no gradient is wanted.
        floats: Length of the arena, for each sample.
        image, waves: Where the image and the embedded times lie; places of one sample.
        features, slopes: Where the features that the head reads lie and their gradients, [H, W, C] each.
        image_grad: Where the image's gradient lies.
        alone: Whether each sample goes through the plan by itself.
    """

    forward: Tensor
    backward: Tensor | None
    floats: int
    image: int
    waves: int
    features: tuple[tuple[int, tuple[int, int, int]], ...]
    slopes: tuple[int, ...]
    image_grad: int
    alone: bool


def lower_encoder(encoder: EncoderUNet, height: int, width: int, *, gradient: bool) -> EncoderPlan:
    """The plan of a classifier for images of height x width pixels.

    Args:
        encoder: The network.
        height, width: Multiples of its divisor.
        gradient: Whether the gradient of the images is wanted: activations keep their room until then.

    Raises:
        Unplanned: as `lower_training`, and a mean over pixels that are not halved down to one.
    """
    return _Lowering(encoder).features(height, width, gradient)


class _Norm(nn.Module):
    """A group norm as the layers of a plan read it."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.eps, self.act = (
            norm.weight,
            norm.bias,
            norm.num_groups,
            norm.eps,
            True,
        )


class _Lowering(Lowering):
    def __init__(self, encoder: EncoderUNet) -> None:
        Layers.__init__(self, list(encoder.parameters()))
        self.unet = cast(Any, encoder)
        self.back = []
        self.num_dropouts = 0
        self.image_grad = -1

    def features(self, height: int, width: int, gradient: bool) -> EncoderPlan:
        encoder = cast("EncoderUNet", self.unet)
        if not all(map(is_dense, encoder.parameters())):
            raise Unplanned("parameters that do not lie as a network's own do")
        x = self.image(height, width, encoder.config.in_channels)
        waves, _ = self.embed(encoder.config.channels, False)
        # Nobody asks for the gradient of the time.
        self.back.clear()
        is_spatial = encoder.pool.startswith("spatial")
        h = self.first(x, cast(nn.Conv2d, cast(Block, encoder.input_blocks[0])[0]))
        found = [self.mean(h)] if is_spatial else []
        for block in (*list(encoder.input_blocks)[1:], encoder.middle_block):
            h = self.block(cast(Block, block), h)
            found += [self.mean(h)] if is_spatial else []
        if not is_spatial:
            norm = next(iter(cast(nn.Sequential, encoder.out)))
            expect(nn.GroupNorm, norm)
            n = self.last_norm(h, cast(nn.GroupNorm, norm))
            mean = self.mean(n)
            found = [mean] if encoder.pool == "adaptive" else [mean, n]
        return self.planned(x, waves, found, gradient)

    def planned(self, x: Image, waves: Image, found: list[Image], gradient: bool) -> EncoderPlan:
        forward, slopes = len(self.code), []
        if gradient:
            for feature in found:
                self.grads[feature.buffer] = self.like(feature)
                slopes.append(self.grads[feature.buffer].buffer)
            while self.back:
                self.back.pop()()
            self.keep_what_leads_to(forward, self.image_grad)
        given, results = [x.buffer, waves.buffer], [feature.buffer for feature in found]
        taken = [self.image_grad] if gradient else []
        alone = sum(value.numel() for value in self.unet.parameters()) <= _MOST_WEIGHTS
        places, floats = self.place(
            forward, given, results, slopes, taken, apart=len(self.code) - forward if alone else None
        )
        if alone and floats > _MOST_FLOATS:
            alone = False
            places, floats = self.place(forward, given, results, slopes, taken, apart=None)
        rows = torch.from_numpy(self.rows(places))
        return EncoderPlan(
            rows[:forward].clone(), rows[forward:].clone() if gradient else None, floats, places[x.buffer],
            places[waves.buffer], tuple((places[f.buffer], (f.height, f.width, f.channels)) for f in found),
            tuple(places[slope] for slope in slopes), places[self.image_grad] if gradient else -1, alone,
        )  # fmt: skip

    def first(self, x: Image, conv: nn.Conv2d) -> Image:
        check_conv(conv, 3, 1, 1)
        columns = self.unfold(x, 1, 1, x.height, x.width)
        y = self.linear(columns, conv.weight, conv.bias, conv.out_channels)

        def back() -> None:
            dcolumns, dx = self.linear_back(self.take(y), conv.weight, columns.channels), self.like(x)
            self.emit(
                "fold", x=dcolumns.buffer, channels=x.channels, y=dx.buffer, height_out=x.height, width_out=x.width,
                pad=1, **x.size,
            )  # fmt: skip
            self.image_grad = dx.buffer

        self.back.append(back)
        return y

    def last_norm(self, h: Image, norm: nn.GroupNorm) -> Image:
        n, common = self.norm(h, cast(Any, _Norm(norm)))

        def back() -> None:
            dn = self.take(n)
            self.norm_back(common, dn, dn)
            self.grads[h.buffer] = dn

        self.back.append(back)
        return n

    def mean(self, x: Image) -> Image:
        """Over all pixels, halved again and again."""
        y = x
        while (y.height, y.width) != (1, 1):
            if y.height % 2 or y.width % 2:
                raise Unplanned(f"a mean over {x.height} x {x.width} pixels, which are not halved down to one")
            y = self.resample(y, up=False, factor=0.25)
        if y is x:
            # The gradients of a mean and of what it is of would be one and the same.
            raise Unplanned("a mean of one pixel")

        def back() -> None:
            dx = self.take(y)
            while dx.height < x.height:
                last = 2 * dx.height == x.height
                dx = self.resample(dx, up=True, factor=0.25, added=self.so_far(x) if last else -1)
            self.grads[x.buffer] = dx

        self.back.append(back)
        return y

    def dropout(self, x: Image, p: float) -> tuple[Image, None]:
        """A classifier that guides drops nothing."""
        return x, None
