"""Layers of a training's plan: what each of them computes, and how gradients come back through it."""

from __future__ import annotations

from torch import Tensor, nn

from fastdiff.nets.blocks import GroupNormAct
from fastdiff.nets.training_plan import Image, Recorder, Unplanned

__all__ = ["VECTOR", "Layers", "check_conv", "expect"]

VECTOR = 16
"""Channels come in whole vectors."""
# Images are as large as the smallest tile at least.
_MIN_SIZE = 4


class Layers(Recorder):
    """Takes down layers: their forward pass gives the result; the way back is noted by who knows what follows.

    Args:
        parameters: Of the network, in the order of their numbers.
    """

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__()
        self.numbers = {id(parameter): number for number, parameter in enumerate(parameters)}
        # Gradient of an image by its buffer, where there is one so far.
        self.grads: dict[int, Image] = {}

    def number(self, parameter: Tensor | None) -> int:
        return -1 if parameter is None else self.numbers[id(parameter)]

    # Gradients.

    def take(self, image: Image) -> Image:
        return self.grads[image.buffer]

    def so_far(self, image: Image) -> int:
        """The buffer of an image's gradient so far, to be added to, or -1."""
        return self.grads[image.buffer].buffer if image.buffer in self.grads else -1

    # Layers. Each emits its forward pass and gives the result; the way back is the block's.

    def conv(self, x: Image, conv: nn.Conv2d, added: int = -1) -> Image:
        check_conv(conv, 3, 1, 1)
        if x.channels % VECTOR or conv.out_channels % VECTOR:
            raise Unplanned(f"a convolution of {x.channels} to {conv.out_channels} channels, no multiples of {VECTOR}")
        if min(x.height, x.width) < _MIN_SIZE:
            raise Unplanned(f"a convolution of {x.height} x {x.width} pixels")
        y = self.image(x.height, x.width, conv.out_channels)
        self.emit(
            "conv", x=x.buffer, channels=x.channels, channels_out=y.channels, y=y.buffer, added=added,
            weight=self.number(conv.weight), bias=self.number(conv.bias), **x.size,
        )  # fmt: skip
        return y

    def conv_back(self, x: Image, dy: Image, conv: nn.Conv2d) -> Image:
        """Gradients of the parameters, and of x."""
        weight, dx = self.number(conv.weight), self.like(x)
        self.emit(
            "conv_grad",
            x=x.buffer,
            channels=x.channels,
            dy=dy.buffer,
            channels_out=dy.channels,
            weight=weight,
            **x.size,
        )
        self.sums(dy, conv.bias)
        self.emit(
            "conv", x=dy.buffer, channels=dy.channels, channels_out=x.channels, y=dx.buffer, transposed=1,
            weight=weight, **x.size,
        )  # fmt: skip
        return dx

    def sums(self, dy: Image, bias: Tensor | None) -> None:
        """The gradient of a bias."""
        if bias is not None:
            self.emit("sums", x=dy.buffer, channels=dy.channels, bias=self.number(bias), **dy.size)

    def linear(
        self, x: Image, weight: Tensor, bias: Tensor | None, channels: int, x2: Image | None = None, added: int = -1
    ) -> Image:
        y = self.image(x.height, x.width, channels)
        self.emit(
            "linear", x=x.buffer, channels=x.channels, channels_out=channels, y=y.buffer, added=added,
            weight=self.number(weight), bias=self.number(bias), **_second(x2), **x.size,
        )  # fmt: skip
        return y

    def linear_grad(self, x: Image, dy: Image, weight: Tensor, bias: Tensor | None, x2: Image | None = None) -> None:
        """Gradients of the parameters."""
        self.emit(
            "linear_grad", x=x.buffer, channels=x.channels, dy=dy.buffer, channels_out=dy.channels,
            weight=self.number(weight), **_second(x2), **x.size,
        )  # fmt: skip
        self.sums(dy, bias)

    def linear_back(self, dy: Image, weight: Tensor, channels: int, added: int = -1) -> Image:
        """The gradient of what was read; in the place of `added` where that is given."""
        dx = Image(added, dy.height, dy.width, channels) if added >= 0 else self.image(dy.height, dy.width, channels)
        self.emit(
            "linear", x=dy.buffer, channels=dy.channels, channels_out=channels, y=dx.buffer, added=added, transposed=1,
            weight=self.number(weight), **dy.size,
        )  # fmt: skip
        return dx

    def norm(
        self, x: Image, norm: GroupNormAct, x2: Image | None = None, time: int = -1, scale: int = -1
    ) -> tuple[Image, dict[str, int | float]]:
        """The result, and what the way back has in common with it."""
        channels = x.channels + (0 if x2 is None else x2.channels)
        y = self.image(x.height, x.width, channels)
        common = {
            "x": x.buffer, "channels": x.channels, "weight": self.number(norm.weight), "bias": self.number(norm.bias),
            "act": norm.act, "time": time, "scale": scale, "stats": self.spread_buffer(2 * norm.groups),
            "groups": norm.groups, "number": norm.eps, **_second(x2), **x.size,
        }  # fmt: skip
        self.emit("norm", y=y.buffer, **common)
        return y, common

    def norm_back(
        self, common: dict[str, int | float], dy: Image, y: Image, *, y2: int = -1, added: int = -1, more: int = -1,
        total: int = -1, emb: int = -1,
    ) -> None:  # fmt: skip
        """Gradients of x, into y, and of the parameters.

        `total`: where the gradient of the time goes that was added; `emb`: where those of scale and shift go.
        """
        channels = int(common["channels"]) + int(common.get("channels2", 0))
        sums, products = self.vector(channels), self.vector(channels)
        self.emit(
            "norm_grad", dy=dy.buffer, y=y.buffer, y2=y2, added=added, more=more, sums=sums.buffer,
            products=products.buffer, total=total, **common,
        )  # fmt: skip
        weight, bias = int(common["weight"]), int(common["bias"])
        if emb >= 0:
            self.emit(
                "scale_grad", channels=channels, sums=sums.buffer, products=products.buffer, scale=common["scale"],
                weight=weight, bias=bias, y=emb,
            )  # fmt: skip
        self.emit("sums", x=products.buffer, channels=channels, bias=weight)
        self.emit("sums", x=sums.buffer, channels=channels, bias=bias)

    def resample(self, x: Image, up: bool, *, factor: float, added: int = -1) -> Image:
        """Each pixel four times, or the sum of four, times the factor."""
        y = (
            self.image(2 * x.height, 2 * x.width, x.channels)
            if up
            else self.image(x.height // 2, x.width // 2, x.channels)
        )
        self.emit(
            "repeat" if up else "pool", x=x.buffer, channels=x.channels, y=y.buffer, height_out=y.height,
            width_out=y.width, added=added, number=factor, **x.size,
        )  # fmt: skip
        return y

    def alike(self, op: str, x: Image, x2: Image | None = None) -> Image:
        y = self.like(x)
        self.emit(
            op, x=x.buffer, channels=x.channels, y=y.buffer, x2=-1 if x2 is None else x2.buffer, height_out=x.height,
            width_out=x.width, **x.size,
        )  # fmt: skip
        return y

    def unfold(self, x: Image, stride: int, pad: int, height: int, width: int, *, transposed: bool = False) -> Image:
        """The 3x3 pixels under a kernel, as channels."""
        y = self.image(height, width, 9 * x.channels)
        self.emit(
            "unfold", x=x.buffer, channels=x.channels, y=y.buffer, height_out=height, width_out=width, stride=stride,
            pad=pad, transposed=transposed, **x.size,
        )  # fmt: skip
        return y


def expect(kind: type[nn.Module], *modules: nn.Module) -> None:
    """Raise Unplanned unless modules are of a class."""
    for module in modules:
        if not isinstance(module, kind):
            raise Unplanned(f"a {type(module).__name__} in the place of a {kind.__name__}")


def check_conv(conv: nn.Conv2d, kernel: int, stride: int, pad: int) -> None:
    """Raise Unplanned unless a convolution is what its class makes."""
    expect(nn.Conv2d, conv)
    found = (conv.kernel_size, conv.stride, conv.padding, conv.dilation, conv.groups, conv.padding_mode)
    if found != ((kernel, kernel), (stride, stride), (pad, pad), (1, 1), 1, "zeros"):
        raise Unplanned("a convolution with a kernel, stride or padding of its own")


def _second(x2: Image | None) -> dict[str, int]:
    return {} if x2 is None else {"x2": x2.buffer, "channels2": x2.channels}
