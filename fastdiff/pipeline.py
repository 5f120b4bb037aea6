"""Pipeline: a network with the process it was trained on, and what one does with the two."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from fastdiff import likelihood as scoring
from fastdiff import samplers
from fastdiff.checkpoint import WeightKind, load_model, save_model
from fastdiff.data import DataScaling
from fastdiff.diffusion import Diffusion
from fastdiff.sampling import Runner, SamplingStep, checked_ids, sample
from fastdiff.schedule import nearest_name
from fastdiff.table import CoefficientTable
from fastdiff.thresholding import DynamicThreshold
from fastdiff.unet import UNet

__all__ = ["Pipeline", "default_steps"]

Method = Literal["bound"]
_METHODS = ("bound",)


def default_steps(sampler: str, diffusion: Diffusion) -> int:
    """Network evaluations where nobody chose: all timesteps for "ddpm", at most 50 for the other samplers."""
    return diffusion.num_timesteps if sampler == "ddpm" else min(50, diffusion.num_timesteps)


class Pipeline:
    """A network and the process it was trained on.

    Attributes:
        unet: The network, in evaluation mode.
        diffusion: What it was trained on.
        scaling: How the values of its data map to [-1, 1].
        metadata: Where the model came from: "path", "weights", "step", "training", "data", "versions", where known.

    Args:
        unet: As above.
        diffusion: As above.
        scaling: As above; 8-bit images when left out.
        metadata: As above.
    """

    def __init__(
        self,
        unet: UNet,
        diffusion: Diffusion,
        scaling: DataScaling | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> None:
        self.unet = unet.eval()
        self.diffusion = diffusion
        self.scaling = DataScaling() if scaling is None else scaling
        self.metadata = dict(metadata or {})

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        device: torch.device | str = "cpu",
        weights: WeightKind | None = None,
        preset: str | None = None,
        flags: str | Mapping[str, Any] | None = None,
        unet: Mapping[str, Any] | None = None,
        diffusion: Diffusion | None = None,
    ) -> Self:
        """Load a model, of this or of another project; its contents tell which.

        Known are fastdiff's model folders and training runs; diffusers' `UNet2DModel` and pipeline folders; weights
        files of improved- and guided-diffusion, ddim, Ho (in PyTorch) and lucidrains; and ids of the Hugging Face
        hub. No code in a file is run: only safetensors and plain data are read.

        The files of other projects leave things open: T and the schedule, the size of the images, the heads and the
        qkv order of attention, whether weights are averaged. They are taken from the arguments below, or from the
        names of published files. What no one says raises; `metadata["said"]` tells who said what.

        Args:
            path: Folder, file, or hub id.
            device: Where the network goes.
            weights: "ema" or "raw"; None takes what the model was saved with, the average where there are both.
            preset: A published network, a name in `fastdiff.unet_config.PRESETS`.
            flags: Flags of OpenAI's scripts, as one line or as names and values.
            unet: Fields of `UNetConfig` that the file does not say, such as image_size.
            diffusion: What the network was trained on.

        Raises:
            ValueError: the path does not exist or is not known, the model is damaged, refused or contradicts the
                arguments, or something is left open.
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
            raise ValueError(f"{path} is a model of fastdiff, which says everything: leave out preset, flags and so on")
        return cls(loaded.unet, loaded.diffusion, loaded.scaling, loaded.metadata)

    def save_pretrained(self, path: str | Path) -> Path:
        """Write a model folder that `from_pretrained` reads; see `save_model` for what it raises.

        Raises:
            ValueError: the network is of another project and not a `fastdiff.UNet`.
        """
        if not isinstance(self.unet, UNet):
            raise ValueError(f"a {type(self.unet)} is an architecture of its own, which a model folder cannot describe")
        kind: WeightKind = "ema" if self.metadata.get("weights") == "ema" else "raw"
        return save_model(
            path,
            self.unet,
            self.diffusion,
            self.scaling,
            weights=kind,
            step=self.metadata.get("step") or 0,
            training=self.metadata.get("training"),
            data=self.metadata.get("data"),
        )

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.unet.parameters()).device

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of the images that the model was trained on."""
        shape = (self.metadata.get("data") or {}).get("shape")
        if isinstance(shape, list) and len(shape) == 3:
            return int(shape[0]), int(shape[1]), int(shape[2])
        config = self.unet.config
        return config.in_channels, config.image_size, config.image_size

    def sample(
        self,
        num: int = 1,
        *,
        sampler: str | CoefficientTable = "ddim",
        steps: int | None = None,
        seed: int = 0,
        sample_ids: Tensor | Iterable[int] | None = None,
        labels: Tensor | None = None,
        batch_size: int | None = None,
        runner: Runner = "auto",
        progress: bool = False,
        callback: Callable[[SamplingStep], None] | None = None,
        threshold: DynamicThreshold | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample images.

        Args:
            num: How many.
            sampler: Its name (`fastdiff.samplers.names()`), or a table.
            steps: Network evaluations per image; when None, all timesteps for "ddpm" and at most 50 for the others.
            seed: In [0, 2^64).
            sample_ids: One whole number per image; 0..num-1 when None.
            labels: [num] int64, for a network with classes.
            batch_size: Images at a time; all when None. It changes nothing but speed and memory.
            runner: See `fastdiff.sample`.
            progress: Show a progress bar per batch.
            callback: Called after each row of each batch.
            threshold: Dynamic thresholding.
            **options: Of the sampler, such as eta=0.5.

        Returns:
            [num, C, H, W] float32, about [-1, 1], on the network's device.

        Raises:
            ValueError: unknown sampler or option, or arguments that do not fit.
        """
        if num < 0:
            raise ValueError(f"num must be at least 0, got {num}")
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        table = self._table(sampler, steps, options)
        ids = checked_ids(sample_ids, num, self.device)
        labels = self._checked_labels(labels, num)
        size = max(1, num if batch_size is None else batch_size)
        parts = [
            sample(
                self.unet,
                table,
                shape=(len(part), *self.image_shape),
                seed=seed,
                sample_ids=part,
                model_kwargs=None if labels is None else {"y": labels[first : first + size]},
                runner=runner,
                progress=progress,
                callback=callback,
                threshold=threshold,
            )
            for first, part in zip(range(0, max(1, num), size), ids.split(size), strict=True)
        ]
        return torch.cat(parts)

    def likelihood(
        self,
        x: Tensor,
        method: Method = "bound",
        *,
        labels: Tensor | None = None,
        **options: Any,
    ) -> scoring.Bound:
        """Score images in bits/dim.

        Args:
            x: [B, C, H, W] in [-1, 1], or uint8.
            method: "bound", the variational bound.
            labels: [B] int64, for a network with classes.
            **options: Of `fastdiff.likelihood.bound`; `decoder` and `levels` follow from the model's data.

        Raises:
            ValueError: unknown method, or images that do not fit.
        """
        if method not in _METHODS:
            raise ValueError(f"unknown method {method!r}: {nearest_name(str(method), _METHODS)}")
        labels = self._checked_labels(labels, x.shape[0])
        levels = self.scaling.levels
        options = {"decoder": "gaussian" if levels is None else "discrete", "levels": levels or 256} | options
        kwargs = None if labels is None else {"y": labels}
        return scoring.bound(self.unet, self.diffusion, x, model_kwargs=kwargs, **options)

    def _table(self, sampler: str | CoefficientTable, steps: int | None, options: dict[str, Any]) -> CoefficientTable:
        if isinstance(sampler, CoefficientTable):
            if steps is not None or options:
                given = ", ".join(["steps"] * (steps is not None) + sorted(options))
                raise ValueError(f"a table is given, so {given} cannot be chosen as well")
            return sampler
        return samplers.build(
            sampler, self.diffusion, default_steps(sampler, self.diffusion) if steps is None else steps, **options
        )

    def _checked_labels(self, labels: Tensor | None, num: int) -> Tensor | None:
        classes = self.unet.config.num_classes
        if labels is None:
            if classes is not None:
                raise ValueError(f"the network has {classes} classes: give labels, one per image")
            return None
        if classes is None:
            raise ValueError("the network has no classes: leave labels out")
        if labels.shape != (num,) or labels.dtype != torch.int64:
            raise ValueError(f"labels must be int64 [{num}], got {labels.dtype} {list(labels.shape)}")
        if num and (int(labels.min()) < 0 or int(labels.max()) >= classes):
            raise ValueError(f"labels must be in 0..{classes - 1}, got {int(labels.min())}..{int(labels.max())}")
        return labels.to(self.device)
