"""What one does with a network and its process: sample, export, score, edit."""

from __future__ import annotations

import inspect
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastdiff.engine.choose import Runner, say_what_is_used
from fastdiff.engine.compiled import checked_size
from fastdiff.engine.export import write_model
from fastdiff.engine.native import NativeNetwork, Precision
from fastdiff.files.atomic import atomic_file, write_text
from fastdiff.files.images import write_grid
from fastdiff.files.progress import watched
from fastdiff.likelihood.methods import Method, checked_method
from fastdiff.pipeline.base import TrainedModel
from fastdiff.process.arguments import check_options
from fastdiff.process.checks import check_keys, whole_number
from fastdiff.sampling import editing
from fastdiff.sampling.callbacks import SamplingStep
from fastdiff.sampling.conditions import no_condition
from fastdiff.sampling.labels import Labels
from fastdiff.sampling.runner import sample
from fastdiff.sampling.seeds import Seed, checked_seeds
from fastdiff.sampling.tables import Sampler, default_steps, table_of
from fastdiff.sampling.thresholding import DynamicThreshold
from fastdiff.sampling.views import Views
from fastdiff.version import __version__

__all__ = ["Pipeline", "default_steps"]

# How far continuous data may lie outside [-1, 1]: the rounding of float32.
_RANGE_TOLERANCE = 1e-6


class Pipeline(TrainedModel):
    """A network and the process it was trained on.

    Attributes:
        unet: The network, in evaluation mode.
        diffusion: What it was trained on.
        scaling: How the values of its data map to [-1, 1].
        metadata: Where the model came from: "path", "weights", "step", "training", "data", "versions", where known.
        precision: Of the C++ engine on a CPU, see `fastdiff.sample`, for all that runs there; "fast" when None. May be
            set.
        memory: Of the same: "low" for smaller packed weights, see `fastdiff.compile`. May be set.

    Args:
        unet: As above. The wrappers of `torch.compile`, `DataParallel` and `DistributedDataParallel` are taken off.
        diffusion: As above.
        scaling: As above; 8-bit images when left out.
        metadata: As above.

    Raises:
        TypeError: unet is no network with a configuration, as a compiled or a guided one.
        ValueError: it computes more than its configuration says.
    """

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
            batch_size: Images at a time; all when None. It changes speed and memory, and no bit of the engine's images.
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
        thresholding or a condition. `memory` is the pipeline's.

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
        network = NativeNetwork(self.unet, precision, memory=self.memory)
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

    def push_to_hub(
        self,
        hub_id: str,
        *,
        private: bool = False,
        token: str | None = None,
        license: str | None = None,
        figures: Iterable[str | Path] = (),
        pictures: int = 16,
        sampler: Sampler = "ddim",
        steps: int | None = None,
        seed: int = 0,
        keep_card: bool = False,
    ) -> str:
        """Put the model on the Hugging Face hub: safetensors, its configuration, samples, and a card written from them.

        `from_pretrained("hf://owner/name")` reads it back. All files come in one commit.

        Args:
            hub_id: owner/name. The model is made where it does not exist, and gets new files where it does.
            private: Whether a model that is made is seen by its owner alone.
            token: Of an account that may write; when None, of HF_TOKEN or of `hf auth login`.
            license: The hub's identifier, such as "mit"; the card says so where there is none.
            figures: Folders of `fastdiff evaluate` and `fastdiff compare`, whose numbers and recommendations the card
                repeats.
            pictures: Samples on the card, 0 for none: ids 0, 1, ... of the seed, none picked. A network that is given
                images has none.
            sampler: Of the pictures, see `sample`.
            steps: As sampler.
            seed: As sampler.
            keep_card: Leave the card that is there.

        Returns:
            Where the model is, a URL.

        Raises:
            ValueError: a name, a licence or figures that are none; or the network is of another project and not a
                `fastdiff.UNet`.
            RuntimeError: huggingface_hub is not installed, no token, or the hub refuses or cannot be reached.
        """
        from fastdiff.convert.card import check_license, model_card, read_figures
        from fastdiff.convert.hub import check_hub_id, push

        name, license = check_hub_id(hub_id), check_license(license)
        pictures = whole_number("pictures", pictures, low=0)
        reports = read_figures(figures)
        with tempfile.TemporaryDirectory() as place:
            folder = self.save_pretrained(Path(place) / "model")
            told = None
            if pictures and not self.extra_channels:
                table = table_of(sampler, self.diffusion, steps)
                num = self.unet.config.num_classes
                labels = None if num is None else torch.arange(pictures) % num
                write_grid(folder / "samples.png", self.sample(pictures, sampler=table, seed=seed, labels=labels))
                told = f"Samples 0 to {pictures - 1} of seed {seed}, none picked: {table.name}, "
                told += f"{table.num_evaluations} evaluations."
            card = model_card(self, name, image_shape=self.image_shape, license=license, figures=reports, pictures=told)
            write_text(folder / "README.md", card)
            message = f"A model of fastdiff {__version__}"
            return push(folder, name, private=private, token=token, message=message, keep_card=keep_card)

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
        """The network as eps, x_0, v, score, velocity, F and denoiser; see `fastdiff.sampling.views.Views`."""
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
