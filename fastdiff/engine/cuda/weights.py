"""A network's weights as a GPU's launches read them: static tensors, written again when the network changes."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from fastdiff.engine.pack import attention_weights, weight_and_bias
from fastdiff.engine.plan import Instruction
from fastdiff.nets.unet import UNet, timestep_embedding

__all__ = ["Weights"]


class Weights:
    """Static copies of a network's parameters, in the types and layouts of the launches.

    Captured graphs hold their addresses, so a change of the network is written into the same tensors.

    Args:
        unet: The network.
        dtype: Of images, kernels and matrices; everything else is float32.
        tf32: Whether float32 convolutions and products may use TensorFloat-32.
    """

    def __init__(self, unet: UNet, dtype: torch.dtype, *, tf32: bool) -> None:
        # Weakly: what is made for a network is kept under it.
        self._network = weakref.ref(unet)
        self.dtype, self.tf32 = dtype, tf32
        self.device = unet.conv_out.weight.device
        self._made: dict[tuple[object, ...], tuple[tuple[Tensor, ...], Callable[[], tuple[Tensor, ...]]]] = {}

    @property
    def unet(self) -> UNet:
        """The network."""
        unet = self._network()
        if unet is None:
            raise RuntimeError("the network that was compiled is gone")
        return unet

    def refresh(self) -> None:
        """Write what the network's parameters are now into all that was made of them."""
        with torch.no_grad():
            self._refresh()

    def _refresh(self) -> None:
        for tensors, make in self._made.values():
            for tensor, value in zip(tensors, make(), strict=True):
                tensor.copy_(value)

    def _make(self, key: tuple[object, ...], make: Callable[[], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
        if key not in self._made:
            with torch.no_grad():
                # Clones: parameters of the right type would be the network's own memory, which may move.
                self._made[key] = (tuple(value.detach().clone() for value in make()), make)
        return self._made[key][0]

    def norm(self, i: Instruction) -> tuple[Tensor, Tensor]:
        """Weight and bias of a "norm_act", float32 [C]."""
        weight, bias = self._make(("norm", i.parameter), lambda: _float(*self._layer(i.parameter)))
        return weight, bias

    def added(self, i: Instruction, channels: int) -> Tensor | None:
        """The bias that is added to the first source, float32 [channels], zeros behind it; None where there is none."""
        if not i.added:
            return None
        name = i.added

        def make() -> tuple[Tensor, ...]:
            bias = self._layer(name)[1].float()
            return (F.pad(bias, (0, channels - len(bias))),)

        return self._make(("added", name, channels), make)[0]

    def kernel(self, i: Instruction, channels_in: int, channels_out: int) -> Tensor:
        """Of a 3x3 convolution, [channels_out, channels_in, 3, 3] channels_last, with zeros behind the module's own."""
        name = i.parameter

        def make() -> tuple[Tensor, ...]:
            weight = self._layer(name)[0]
            more = (channels_out - weight.shape[0], channels_in - weight.shape[1])
            padded = F.pad(weight.to(self.dtype), (0, 0, 0, 0, 0, more[1], 0, more[0]))
            return (padded.contiguous(memory_format=torch.channels_last),)

        return self._make(("kernel", name), make)[0]

    def matrices(self, i: Instruction, widths: list[int]) -> tuple[list[Tensor], Tensor]:
        """Of a product of pixels: for each source [its channels, C_out], and the bias [C_out]."""

        def make() -> tuple[Tensor, ...]:
            weight, bias = attention_weights(self.unet, i) if i.qkv else self._layer(i.parameter)
            weight, bias = (value.to(self.dtype) for value in (weight.flatten(1), bias))
            # Rows of a source's columns, contiguous: cuBLAS reads them transposed.
            return (*(part.contiguous() for part in weight.split(widths, dim=1)), bias)

        *parts, bias = self._make(("matrix", i.parameter, *widths), make)
        return [part.T for part in parts], bias

    def times(self, t: Tensor, y: Tensor | None, projections: tuple[str, ...]) -> Tensor:
        """What depends on times and labels alone, float32 [N, time_width]."""
        first, b1, last, b2, project, b3 = self._make(("times", *projections), lambda: self._time_layers(projections))
        config = self.unet.config
        waves = timestep_embedding(t, config.channels, config.time_embedding, dtype=torch.float32)
        embedded = F.linear(F.silu(F.linear(waves, first, b1)), last, b2)
        if self.unet.label_emb is not None:
            (labels,) = self._make(("labels",), lambda: _float(self.unet.label_emb.weight))  # type: ignore[union-attr]
            embedded = embedded + F.embedding(y, labels)  # type: ignore[arg-type]
        return F.linear(F.silu(embedded), project, b3)

    def _time_layers(self, projections: tuple[str, ...]) -> tuple[Tensor, ...]:
        layers = [self._layer(name) for name in projections]
        joined = [torch.cat(parts) for parts in zip(*layers, strict=True)]
        return _float(*self._layer("time_embed.0"), *self._layer("time_embed.2"), *joined)

    def _layer(self, name: str) -> tuple[Tensor, Tensor]:
        return weight_and_bias(self.unet.get_submodule(name))


def _float(*values: Tensor) -> tuple[Tensor, ...]:
    return tuple(value.detach().float() for value in values)
