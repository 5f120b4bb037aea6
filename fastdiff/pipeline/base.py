"""A network with the process it was trained on: how it is loaded, saved, described and wrapped."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastdiff.engine.choose import compiled_or_not
from fastdiff.engine.native import Memory, Precision, check_memory, check_precision
from fastdiff.files.checkpoint import load_model, save_described
from fastdiff.files.data import DataScaling
from fastdiff.nets.conditions import Concatenated, ImageCondition
from fastdiff.nets.model import Model
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network
from fastdiff.process.arguments import advised
from fastdiff.process.diffusion import Diffusion
from fastdiff.sampling.conditions import checked_condition, no_condition
from fastdiff.sampling.guidance import ClassifierFreeGuidance, checked_guidance
from fastdiff.sampling.labels import Classes, Labels

__all__ = ["TrainedModel"]


class TrainedModel:
    """What `Pipeline` knows of its model; arguments, attributes and errors are there."""

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        scaling: DataScaling | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.unet: UNet = _checked_network(unet).eval()
        self.diffusion = diffusion
        self.scaling = DataScaling() if scaling is None else scaling
        self.metadata = dict(metadata or {})
        self._precision: Precision | None = None
        self._memory: Memory = "normal"

    @property
    def precision(self) -> Precision | None:
        """See the class."""
        return self._precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        if precision is not None:
            check_precision(precision)
        self._precision = precision

    @property
    def memory(self) -> Memory:
        """See the class."""
        return self._memory

    @memory.setter
    def memory(self, memory: Memory) -> None:
        check_memory(memory)
        self._memory = memory

    def __repr__(self) -> str:
        size = sum(parameter.numel() for parameter in self.unet.parameters())
        where = f", from {self.metadata['path']}" if self.metadata.get("path") else ""
        return f"Pipeline({type(self.unet).__name__} of {size:,} parameters, {self.diffusion}{where})"

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        weights: str | None = None,
        preset: str | None = None,
        flags: str | Mapping[str, Any] | None = None,
        unet: Mapping[str, Any] | None = None,
        diffusion: Diffusion | None = None,
    ) -> Self:
        """Load a model, of this or of another project; its contents tell which.

        Known are fastdiff's model folders and training runs; diffusers' `UNet2DModel` and pipeline folders; weights
        files of improved- and guided-diffusion, ddim, Ho (in PyTorch), lucidrains, score_sde and EDM (.pkl); and ids of
        the Hugging Face hub. No code in a file is run: only safetensors and plain data are read.

        The files of other projects leave things open: T and the schedule, the size of the images, the heads and the
        qkv order of attention, whether weights are averaged. They are taken from the arguments below, or from the
        names of published files. What no one says raises; `metadata["said"]` tells who said what.

        Args:
            path: Folder, file, or hub id: "hf://owner/name", or "owner/name" that does not look like a local path. A
                revision may follow "hf://owner/name", behind an "@".
            device: Where the network goes.
            weights: "ema" or "raw"; None takes what the model was saved with, the average where there are both. Of the
                several averages of a training, "ema:0.999" is the one of that decay, "power:0.05" that of a width.
            preset: A published network, a name in `fastdiff.nets.config.PRESETS`.
            flags: Flags of OpenAI's scripts, as one line or as names and values.
            unet: Fields of `UNetConfig` that the file does not say, such as image_size.
            diffusion: What the network was trained on.

        Raises:
            ValueError: the path does not exist or is not known, on this disk or on the hub, the model is damaged,
                refused or contradicts the arguments, or something is left open.
            RuntimeError: a hub id that cannot be fetched.
        """
        from fastdiff.convert.hub import fetch, is_hub_id
        from fastdiff.convert.load import Hints, is_foreign, load_foreign

        folder = fetch(str(path)) if is_hub_id(path) else Path(path)
        hints = Hints(preset, flags, unet, diffusion)
        if is_foreign(folder):
            loaded = load_foreign(folder, device=device, weights=weights, hints=hints)
        elif hints.is_empty:
            loaded = load_model(folder, device=device, weights=weights)
        else:
            left = ", ".join(advised(name) for name in ("preset", "flags", "unet", "diffusion"))
            raise ValueError(f"{path} is a model of fastdiff, which says everything: leave out {left}")
        return cls(loaded.unet, loaded.diffusion, loaded.scaling, loaded.metadata)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write a model folder that `from_pretrained` reads; see `save_model` for what it raises.

        Raises:
            ValueError: the network is of another project and not a `fastdiff.UNet`.
        """
        if not isinstance(plain_network(self.unet), UNet):
            raise ValueError(f"a {type(self.unet)} is an architecture of its own, which a model folder cannot describe")
        return save_described(path, self)

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        place: torch.device = next(self.unet.parameters()).device
        return place

    @property
    def classes(self) -> Classes:
        """How many classes the network has, and their names where the training data had some."""
        return Classes(self.unet.config.num_classes, self.class_names)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes that the model was trained on; empty where they are not known."""
        names = (self.metadata.get("data") or {}).get("classes")
        num = self.unet.config.num_classes
        return tuple(map(str, names)) if isinstance(names, list) and num is not None and len(names) <= num else ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images that the model was trained on."""
        shape = (self.metadata.get("data") or {}).get("shape")
        if isinstance(shape, list) and len(shape) == 3:
            return int(shape[0]), int(shape[1]), int(shape[2])
        config = self.unet.config
        # Some of other projects have as many channels out as in, and say one number.
        outputs, per_channel = getattr(config, "out_channels", config.in_channels), self.diffusion.model_channels(1)
        channels = config.in_channels if outputs % per_channel else outputs // per_channel
        return channels, config.image_size, config.image_size

    @property
    def condition(self) -> ImageCondition | None:
        """What the network is given of an image beside the noisy one, where its training says so; None for nothing."""
        training = self.metadata.get("training")
        text = training.get("condition") if isinstance(training, dict) else None
        return None if text is None else ImageCondition(text)

    @property
    def extra_channels(self) -> int:
        """Channels of the network's input that are not the noisy image's."""
        channels: int = self.unet.config.in_channels - self.image_shape[0]
        return channels

    def checked_guidance(self, guidance: float | None, null_label: int | str | None) -> tuple[float, int] | None:
        """The scale of classifier-free guidance and the null class; None without guidance.

        Args:
            guidance: See `sample`.
            null_label: See `sample`.

        Warns:
            UserWarning: the network was trained without dropping labels.

        Raises:
            ValueError: no finite number, no null class, or a null class without guidance.
        """
        training = self.metadata.get("training")
        is_untrained = isinstance(training, dict) and not training.get("label_dropout")
        return checked_guidance(self.classes, guidance, null_label, is_untrained=is_untrained)

    def _check_images(self, x: Tensor, name: str, *, is_seen: bool = False) -> None:
        no_condition(0 if is_seen else self.extra_channels)
        channels = self.unet.config.in_channels - self.extra_channels
        if x.ndim != 4 or x.shape[1] != channels:
            raise ValueError(f"{name} must be [B, {channels}, H, W], the model's channels, got {list(x.shape)}")

    def _kwargs(self, labels: Tensor | None) -> dict[str, Tensor] | None:
        return None if labels is None else {"y": labels}

    def _checked_labels(self, labels: Labels | None, num: int) -> Tensor | None:
        return self.classes.checked(labels, num, self.device)

    def _seen(self, condition: Tensor | None, mask: Tensor | None, num: int) -> dict[str, Tensor]:
        """The further channels of the network's input, as an argument of `Concatenated`; empty where it has none."""
        seen = checked_condition(
            condition, mask, num, known=self.condition, channels=self.extra_channels, shape=self.image_shape,
            scaling=self.scaling, device=self.device,
        )  # fmt: skip
        return {} if seen is None else {"condition": seen}

    def _chosen(self, options: Mapping[str, Any] | None = None) -> Model:
        """The network, or what was compiled of it where something was chosen; for an editing with such options."""
        if self.precision is None and self.memory == "normal":
            return self.unet
        return compiled_or_not(self.unet, (options or {}).get("runner", "auto"), self.precision, self.memory)

    def _guided(
        self, guidance: float | None, null_label: int | str | None, runner: str, precision: Precision | None = None
    ) -> Model:
        """The network, or wrappers that guide it and give it its condition."""
        network: Model = self.unet
        if self.extra_channels or guidance is not None or self.memory != "normal":
            network = compiled_or_not(self.unet, runner, precision, self.memory)
        if self.extra_channels:
            network = Concatenated(network)
        guided = self.checked_guidance(guidance, null_label)
        return network if guided is None else ClassifierFreeGuidance(network, {"y": guided[1]}, guided[0])


def _checked_network(unet: Any) -> Any:
    """The network itself, out of PyTorch's wrappers."""
    network = plain_network(unet) if isinstance(unet, nn.Module) else unet
    if not isinstance(network, nn.Module) or not hasattr(network, "config"):
        raise TypeError(
            f"unet must be a fastdiff.UNet, or a network of from_pretrained, got {type(network).__name__}: give the "
            "network itself, and guide with sample(guidance=...), or sample what wraps it with fastdiff.sample"
        )
    if isinstance(network, UNet):
        own_tensors(network)
    return network
