"""Pipeline: a network with the process it was trained on, and what one does with the two."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from fastdiff.engine.choose import Runner, compiled_or_not, say_what_is_used
from fastdiff.engine.compiled import checked_size
from fastdiff.engine.export import write_model
from fastdiff.engine.native import NativeNetwork, Precision, check_precision
from fastdiff.files.atomic import atomic_file
from fastdiff.files.checkpoint import load_model, save_described
from fastdiff.files.data import DataScaling
from fastdiff.files.progress import watched
from fastdiff.likelihood.methods import Method, checked_method
from fastdiff.nets.conditions import Concatenated, ImageCondition
from fastdiff.nets.model import Model
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network
from fastdiff.process.arguments import advised, check_options
from fastdiff.process.checks import check_keys, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.sampling import editing
from fastdiff.sampling.conditions import checked_condition, no_condition
from fastdiff.sampling.guidance import ClassifierFreeGuidance, checked_guidance
from fastdiff.sampling.labels import Classes, Labels
from fastdiff.sampling.runner import SamplingStep, sample
from fastdiff.sampling.seeds import Seed, checked_seeds
from fastdiff.sampling.tables import Sampler, default_steps, table_of
from fastdiff.sampling.thresholding import DynamicThreshold
from fastdiff.sampling.views import Views
from fastdiff.version import __version__

__all__ = ["Pipeline", "default_steps"]

# How far continuous data may lie outside [-1, 1]: the rounding of float32.
_RANGE_TOLERANCE = 1e-6


class Pipeline:
    """A network and the process it was trained on.

    Attributes:
        unet: The network, in evaluation mode.
        diffusion: What it was trained on.
        scaling: How the values of its data map to [-1, 1].
        metadata: Where the model came from: "path", "weights", "step", "training", "data", "versions", where known.
        precision: Of the C++ engine on a CPU, see `fastdiff.sample`, for all that runs there; "fast" when None. May be
            set.

    Args:
        unet: As above. The wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel` are taken off.
        diffusion: As above.
        scaling: As above; 8-bit images when left out.
        metadata: As above.

    Raises:
        TypeError: unet is no network with a configuration, as a compiled or a guided one.
        ValueError: it computes more than its configuration says.
    """

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

    @property
    def precision(self) -> Precision | None:
        """See the class."""
        return self._precision

    @precision.setter
    def precision(self, precision: Precision | None) -> None:
        if precision is not None:
            check_precision(precision)
        self._precision = precision

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
            path: Folder, file, or hub id: "hf://owner/name", or "owner/name" that does not look like a local path.
            device: Where the network goes.
            weights: "ema" or "raw"; None takes what the model was saved with, the average where there are both. Of the
                several averages of a training, "ema:0.999" is the one of that decay, "power:0.05" that of a width.
            preset: A published network, a name in `fastdiff.nets.config.PRESETS`.
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

    def sample(
        self,
        num: int = 1,
        *,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        seed: Seed = 0,
        sample_ids: Tensor | Iterable[int] | None = None,
        labels: Labels | None = None,
        condition: Tensor | None = None,
        mask: Tensor | None = None,
        batch_size: int | None = None,
        runner: Runner = "auto",
        precision: Precision | None = None,
        progress: bool = False,
        callback: Callable[[SamplingStep], None] | None = None,
        callback_rows: Iterable[int] | None = None,
        threshold: DynamicThreshold | None = None,
        guidance: float | None = None,
        null_label: int | str | None = None,
        **options: Any,
    ) -> Tensor:
        """Sample images.

        Args:
            num: How many.
            sampler: Its name (`fastdiff.samplers.names()`), a table, the path of one (.json), or a function
                (diffusion, steps, **options) that returns one. A table of another process is refused.
            steps: Network evaluations per image; when None, all timesteps for "ddpm" and at most 50 for the others.
            seed: In [0, 2^64), or one per image; see `fastdiff.sample`.
            sample_ids: One whole number per image; 0..num-1 when None, and 0 for each with a seed per image.
            labels: For a network with classes: [num] int64, or a list of num numbers or names (`class_names`).
            condition: For a network that is given images beside the noisy one: [num, C, h, w] in [-1, 1], or values as
                its data are stored; the small images for super-resolution (or large ones, which are made small), the
                images to fill for inpainting. Where the model does not say what it was trained with, all further
                channels of its input, [num, ..., H, W].
            mask: For an inpainting network: 1 where a pixel is known, 0 where it is to be filled, of a shape that
                broadcasts to [num, 1, H, W].
            batch_size: Images at a time; all when None. It changes nothing but speed and memory.
            runner: See `fastdiff.sample`.
            precision: See `fastdiff.sample`; the pipeline's own when None.
            progress: Show a progress bar per batch.
            callback: Called after each row of each batch.
            callback_rows: Call it after these rows only.
            threshold: Dynamic thresholding.
            guidance: Scale of classifier-free guidance, for a network that was trained with a null class; 1 is none.
                `fastdiff.guidance.ClassifierFreeGuidance` has more options.
            null_label: The null class, where the model does not say which it is.
            **options: Of the sampler, such as eta=0.5.

        Returns:
            [num, C, H, W] float32, about [-1, 1], on the network's device.

        Raises:
            ValueError: unknown sampler or option, or arguments that do not fit.
        """
        num = whole_number("num", num, low=0)
        if batch_size is not None:
            batch_size = whole_number("batch_size", batch_size, low=1)
        table = table_of(sampler, self.diffusion, steps, options)
        seeds = checked_seeds(seed, num)
        ids = seeds.ids(sample_ids, num, self.device)
        kwargs = self._kwargs(self._checked_labels(labels, num)) or {}
        kwargs |= self._seen(condition, mask, num)
        precision = self.precision if precision is None else precision
        model = self._guided(guidance, null_label, runner, precision)
        rows = None if callback_rows is None else list(callback_rows)
        size = max(1, num if batch_size is None else batch_size)
        parts = [
            sample(
                model,
                table,
                shape=(len(part), *self.image_shape),
                seed=seeds.part(first, first + size),
                sample_ids=part,
                model_kwargs={name: value[first : first + size] for name, value in kwargs.items()},
                runner=runner,
                # What a wrapper calls has its precision already.
                precision=precision if model is self.unet else None,
                progress=progress,
                callback=callback,
                callback_rows=rows,
                threshold=threshold,
            )
            for first, part in zip(range(0, max(1, num), size), ids.split(size), strict=True)
        ]
        return torch.cat(parts)

    def export(
        self,
        path: str | Path,
        *,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        size: int | tuple[int, int] | None = None,
        precision: Precision = "fast",
        **options: Any,
    ) -> Path:
        """Write the model and a sampler into one file, from which programs without Python sample: docs/standalone.md.

        Their images are those of `sample` for the same seed, ids and labels, without guidance, known pixels,
        thresholding or a condition.

        Args:
            path: The file.
            sampler: See `sample`.
            steps: See `sample`.
            size: Height and width of the images, one number or two; those the model was trained on when None.
            precision: See `fastdiff.compile`.
            **options: Of the sampler, such as eta=0.5.

        Returns:
            `path`.

        Raises:
            ValueError: arguments that do not fit; a sampler that starts from an image; a network that is given more
                than the noisy image and a label, or has a part that the engine cannot run (named).
            RuntimeError: the C++ extension is not built.
        """
        table = table_of(sampler, self.diffusion, steps, options)
        channels, *trained = self.image_shape
        height, width = checked_size(size, trained)
        text = f"sampler: {table!r}\nprocess: {self.diffusion!r}\nprecision: {precision}\nfastdiff {__version__}"
        network = NativeNetwork(self.unet, precision)
        turn = self.classes.num_real if self.classes.num else None
        with atomic_file(path) as file:
            write_model(file, network, table, (channels, height, width), text=text, classes_in_turn=turn)
        return Path(path)

    def likelihood(
        self,
        x: Tensor,
        method: Method = "bound",
        *,
        labels: Labels | None = None,
        progress: bool = False,
        **options: Any,
    ) -> Any:
        """Score images in bits/dim.

        Args:
            x: [B, C, H, W] in [-1, 1], or uint8 values of the data.
            method: "bound", the variational bound with all terms; "estimate", the bound from some of its terms, to a
                requested standard error, which "bound" with `target_error`, `allocation`, `draws` or `max_rounds` is as
                well; "ode", the density by the probability-flow ODE; "iwae", the importance-weighted bound;
                "rate_distortion", the table of progressive coding.
            labels: [B] int64, for a network with classes.
            progress: Draw a bar on the terminal, with the time left. The log under the name "fastdiff.likelihood" has
                lines with it in any case.
            **options: Of the function of `fastdiff.likelihood` behind the method: `bound`, `bound_estimate`, `ode`,
                `iwae`, `rate_distortion`. `decoder` and `levels` follow from the model's data.

        Returns:
            `Bound`, `OdeLikelihood`, `ImportanceBound` or `RateDistortion`.

        Raises:
            ValueError: unknown method or option, or images that do not fit.
        """
        method, scorer = checked_method(method, options)
        self._check_images(x, "x")
        kwargs = self._kwargs(self._checked_labels(labels, x.shape[0]))
        levels = self.scaling.levels
        if method == "ode":
            options = {"levels": levels} | options
        else:
            options = {"decoder": "gaussian" if levels is None else "discrete", "levels": levels or 256} | options
        if levels is None and x.is_floating_point() and bool((x.abs() > 1 + _RANGE_TOLERANCE).any()):
            raise ValueError(f"x must be in [-1, 1], the model's range, got {float(x.min()):g} to {float(x.max()):g}")
        logger = logging.getLogger("fastdiff.likelihood")
        with watched(f"scoring, {method}", x.shape[0], unit="images", shows=progress, logger=logger) as show:
            told = options.pop("on_progress", None)

            def advance(done: int, total: int) -> None:
                show(x.shape[0] * done // max(1, total), "")
                if told is not None:
                    told(done, total)

            if method == "ode":
                # It differentiates the network.
                say_what_is_used(self.precision, "the density by an ODE takes gradients")
            model = self.unet if method == "ode" else self._chosen()
            return scorer(model, self.diffusion, x, model_kwargs=kwargs, on_progress=advance, **options)

    def encode(self, x: Tensor, *, labels: Labels | None = None, **options: Any) -> Tensor:
        """Map images to noise along the probability flow; options, result and errors: `fastdiff.editing.encode`."""
        x, kwargs = self._edited(x, labels, options, editing.encode)
        return editing.encode(self._chosen(options), self.diffusion, x, model_kwargs=kwargs, **options)

    def decode(self, latent: Tensor, *, labels: Labels | None = None, **options: Any) -> Tensor:
        """Map noise to images, the inverse of `encode`; options, result and errors: `fastdiff.editing.decode`."""
        latent, kwargs = self._edited(latent, labels, options, editing.decode)
        return editing.decode(self._chosen(options), self.diffusion, latent, model_kwargs=kwargs, **options)

    def round_trip_error(self, x: Tensor, *, labels: Labels | None = None, **options: Any) -> Tensor:
        """[B] what encoding and decoding lose; see `fastdiff.editing.round_trip_error`."""
        x, kwargs = self._edited(x, labels, options, editing.round_trip_error)
        return editing.round_trip_error(self._chosen(options), self.diffusion, x, model_kwargs=kwargs, **options)

    def vary(
        self,
        x: Tensor,
        *,
        strength: float | Sequence[float] = 0.5,
        labels: Labels | None = None,
        guidance: float | None = None,
        null_label: int | str | None = None,
        **options: Any,
    ) -> Tensor:
        """Noise images up to a share of the timesteps and bring them back; see `fastdiff.editing.vary`.

        `guidance` and `null_label` are those of `sample`.

        At strength 0 this is x, at strength 1 what `sample` gives for the same seed, ids, sampler and steps.
        """
        x, kwargs = self._edited(x, labels, options, editing.vary)
        steps = options.pop("steps", None)
        steps = default_steps(options.get("sampler", "ddim"), self.diffusion) if steps is None else steps
        model = self._guided(guidance, null_label, options.get("runner", "auto"), self.precision)
        model = self._chosen(options) if model is self.unet else model
        return editing.vary(model, self.diffusion, x, strength=strength, steps=steps, model_kwargs=kwargs, **options)

    def interpolate(
        self,
        a: Tensor,
        b: Tensor,
        *,
        weight: float | Sequence[float] = 0.5,
        labels: Labels | None = None,
        **options: Any,
    ) -> Tensor:
        """Mix images in the space of their noise; see `fastdiff.editing.interpolate`."""
        a, kwargs = self._edited(a, labels, options, editing.interpolate)
        b = self._edited(b, labels, options, editing.interpolate)[0]
        return editing.interpolate(
            self._chosen(options), self.diffusion, a, b, weight=weight, model_kwargs=kwargs, **options
        )

    def inpaint(
        self,
        x: Tensor,
        mask: Tensor,
        *,
        labels: Labels | None = None,
        guidance: float | None = None,
        null_label: int | str | None = None,
        **options: Any,
    ) -> Tensor:
        """Fill the pixels where the mask is 0, and keep those where it is 1; see `fastdiff.editing.inpaint`.

        `guidance` and `null_label` are those of `sample`. A network that was trained to inpaint sees the known pixels
        and the mask as well; with jump_repeats=1 it is sampled without jumps.
        """
        known = self.condition
        can_inpaint = known is not None and known.factor is None
        x, kwargs = self._edited(x, labels, options, editing.inpaint, is_seen=can_inpaint)
        kwargs = (kwargs or {}) | (self._seen(x, mask, len(x)) if can_inpaint else {})
        model = self._guided(guidance, null_label, options.get("runner", "auto"), self.precision)
        model = self._chosen(options) if model is self.unet else model
        return editing.inpaint(model, self.diffusion, x, mask, model_kwargs=kwargs, **options)

    def progressive(
        self,
        num: int = 1,
        *,
        rows: int | Sequence[int] = 8,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        seed: int = 0,
        sample_ids: Tensor | Iterable[int] | None = None,
        labels: Labels | None = None,
        **options: Any,
    ) -> editing.Progress:
        """Sample, and keep the predicted image at some rows; see `sample` and `fastdiff.editing.progressive`."""
        num = whole_number("num", num, low=1)
        no_condition(self.extra_channels)
        kwargs = self._kwargs(self._checked_labels(labels, num))
        return editing.progressive(
            self._chosen(),
            table_of(sampler, self.diffusion, steps, options),
            shape=(num, *self.image_shape),
            rows=rows,
            seed=seed,
            sample_ids=sample_ids,
            model_kwargs=kwargs,
        )

    def views(self, *, labels: Labels | None = None, clip: float | None = None) -> Views:
        """The network as eps, x_0, v, score and denoiser; see `fastdiff.sampling.views.Views`."""
        no_condition(self.extra_channels)
        checked = None if labels is None else self._checked_labels(labels, len(labels))
        return Views(self.unet, self.diffusion, self._kwargs(checked) or {}, clip)

    @torch.no_grad()
    def score(self, x: Tensor, t: Tensor | float, *, labels: Labels | None = None) -> Tensor:
        """The score, the gradient of log q(x_t), that the network gives at states x [B, C, H, W] and its time t.

        Args:
            x: States, floating point.
            t: One number or [B], within the schedule; whole or not.
            labels: [B] int64, for a network with classes.

        Raises:
            ValueError: t out of range, or shapes that do not fit.
        """
        self._check_images(x, "x")
        kwargs = self._kwargs(self._checked_labels(labels, x.shape[0]))
        return Views(self.unet, self.diffusion, kwargs or {}).score(x.to(self.device), t)

    def _edited(
        self,
        x: Tensor,
        labels: Labels | None,
        options: dict[str, Any],
        function: Callable[..., Tensor],
        *,
        is_seen: bool = False,
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Images as the model takes them, and what else the network is passed, further channels apart (`is_seen`)."""
        known = list(inspect.signature(function).parameters)
        own = ("model", "diffusion", "x", "a", "b", "latent", "mask", "model_kwargs")
        check_keys(options, [key for key in known if key not in own], function.__name__)
        check_options(options, function, function.__name__)
        self._check_images(x, "images", is_seen=is_seen)
        if x.dtype == torch.uint8:
            x = self.scaling.to_model(x)
        return x.to(self.device), self._kwargs(self._checked_labels(labels, x.shape[0]))

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
        """The network, or what was compiled of it where a precision was chosen; for an editing with such options."""
        if self.precision is None:
            return self.unet
        return compiled_or_not(self.unet, (options or {}).get("runner", "auto"), self.precision)

    def _guided(
        self, guidance: float | None, null_label: int | str | None, runner: str, precision: Precision | None = None
    ) -> Model:
        """The network, or wrappers that guide it and give it its condition."""
        network: Model = self.unet
        if self.extra_channels or guidance is not None:
            network = compiled_or_not(self.unet, runner, precision)
        if self.extra_channels:
            network = Concatenated(network)
        guided = self.checked_guidance(guidance, null_label)
        return network if guided is None else ClassifierFreeGuidance(network, {"y": guided[1]}, guided[0])

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
