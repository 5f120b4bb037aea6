"""Whole pipelines: a fastdiff U-Net in place of a `UNet2DModel`, and the sampling loop in one go."""

from __future__ import annotations

import functools
import inspect
import warnings
from pathlib import Path
from typing import Any, TypeVar, cast

import diffusers
import torch
from diffusers.configuration_utils import FrozenDict
from diffusers.models.unets.unet_2d import UNet2DOutput
from diffusers.pipelines.pipeline_utils import ImagePipelineOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.compat.diffusers._ancestral import DDIMScheduler, DDPMScheduler
from fastdiff.convert import from_unet, to_unet, unet_config_to_diffusers
from fastdiff.engine import Unsupported
from fastdiff.engine.native import cached_network
from fastdiff.nets.unet import UNet
from fastdiff.sampling.runner import sample

Pipe = TypeVar("Pipe", bound=diffusers.DiffusionPipeline)
_PIPELINES = (diffusers.DDPMPipeline, diffusers.DDIMPipeline)


class FusedUNet2DModel(nn.Module):
    """A `fastdiff.UNet` with the interface of diffusers' `UNet2DModel`.

    Without gradients, in eval mode, in float32 on the CPU, it runs in the native engine.

    Args:
        unet: The network; its weights are shared.
        sample_size: `config.sample_size`, height and width in pixels; the network's own image size when None.

    Raises:
        ValueError: diffusers has no such network.
    """

    def __init__(self, unet: UNet, *, sample_size: int | tuple[int, int] | None = None) -> None:
        super().__init__()
        self.unet = unet
        settings: dict[str, Any] = dict(unet_config_to_diffusers(unet.config))
        if sample_size is not None:
            settings["sample_size"] = sample_size
        self.config = FrozenDict(settings)
        self._engine_fits = ops.has_extension()
        self.train(unet.training)

    @classmethod
    def from_model(cls, model: nn.Module) -> FusedUNet2DModel:
        """From a live `UNet2DModel`, whose weights are copied.

        Raises:
            ValueError: not a `UNet2DModel`, or one with parts that `fastdiff.UNet` does not have.
        """
        return cls(to_unet(model), sample_size=getattr(model, "config", {}).get("sample_size"))

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> FusedUNet2DModel:
        """From a folder or hub id, read by `UNet2DModel.from_pretrained` with its options."""
        return cls.from_model(diffusers.UNet2DModel.from_pretrained(path, **options))

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the files of a `UNet2DModel`, which diffusers loads."""
        from_unet(self.unet).save_pretrained(save_directory, **options)

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float | int,
        class_labels: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """The prediction for states [B, C, H, W] at one time or at [B] times.

        Returns:
            `UNet2DOutput` with `.sample`, or a tuple of it without `return_dict`.
        """
        t = timestep if isinstance(timestep, Tensor) else torch.tensor(timestep)
        t = t.to(sample.device).reshape(-1).expand(sample.shape[0])
        output = self._engine(sample, t, class_labels)
        if output is None:
            output = self.unet(sample, t) if class_labels is None else self.unet(sample, t, class_labels)
        return UNet2DOutput(sample=output) if return_dict else (output,)

    def _engine(self, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor | None:
        fits = self._engine_fits and x.device.type == "cpu" and x.dtype == self.dtype == torch.float32
        if not fits or torch.is_grad_enabled() or self.unet.training or len(x) == 0:
            return None
        try:
            output: Tensor = cached_network(self.unet)(x, t, y)
        except Unsupported as error:
            # The module itself runs, and the engine is not asked again.
            warnings.warn(f"the slower module is used: {error}", RuntimeWarning, stacklevel=3)
            self._engine_fits = False
            return None
        return output


# Their loader imports what a pipeline's index names: the public place.
FusedUNet2DModel.__module__ = __name__.rsplit(".", 1)[0]


class _WholeLoop:
    """Comes before a pipeline's class and samples in one `fastdiff.sample` where the noise allows it."""

    unet: Any
    scheduler: Any

    @torch.no_grad()
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As the pipeline's own. With a generator and a stochastic sampler, whose noise has to be drawn from it step by
        step, their loop runs, with the fused step and network."""
        inherited = super().__call__  # type: ignore[misc]
        given = inspect.signature(inherited).bind(*args, **kwargs)
        given.apply_defaults()
        options = given.arguments
        batch, generator, eta = options["batch_size"], options["generator"], options.get("eta", 0.0)
        if not self._fits(generator, eta) or (isinstance(generator, list) and len(generator) != batch):
            return inherited(*args, **kwargs)
        size = self.unet.config["sample_size"]
        shape = (batch, self.unet.config["in_channels"], *((size, size) if isinstance(size, int) else size))
        device = self._execution_device  # type: ignore[attr-defined]
        image = randn_tensor(shape, generator=generator, device=device, dtype=self.unet.dtype)
        scheduler = self.scheduler
        scheduler.set_timesteps(options["num_inference_steps"])
        ddim = isinstance(scheduler, DDIMScheduler)
        clipped = bool(options.get("use_clipped_model_output"))
        found = scheduler._find(int(scheduler.timesteps[0]), (eta, clipped) if ddim else scheduler.variance_type)
        if found is None:
            return inherited(*args, **kwargs)
        table = found[0].table
        seed = scheduler.seed if scheduler.seed is not None else int(torch.randint(0, 1 << 62, ()))
        quiet = getattr(self, "_progress_bar_config", {}).get("disable", False)
        image = sample(self.unet.unet, table, shape=shape, x_init=image, seed=seed,
                       sample_ids=scheduler.sample_ids, progress=not quiet)  # fmt: skip
        image = (image / 2 + 0.5).clamp(0, 1)
        images: Any = image
        if options["output_type"] != "pt":
            images = image.cpu().permute(0, 2, 3, 1).numpy()
            if options["output_type"] == "pil":
                images = self.numpy_to_pil(images)  # type: ignore[attr-defined]
        self.maybe_free_model_hooks()  # type: ignore[attr-defined]
        return ImagePipelineOutput(images=images) if options["return_dict"] else (images,)

    def __reduce_ex__(self, protocol: Any) -> Any:
        # The class is made as it is needed, so that a pickle names the pipeline's own.
        return _empty_whole_loop, (type(self).__mro__[2],), self.__dict__

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> None:
        """Write the pipeline as diffusers' own, with a `UNet2DModel` and their scheduler, which diffusers loads."""
        unet = from_unet(self.unet.unet) if isinstance(self.unet, FusedUNet2DModel) else self.unet
        scheduler = getattr(diffusers, type(self.scheduler).__name__).from_config(self.scheduler.config)
        kind: Any = type(self).__mro__[2]
        kind(unet=unet, scheduler=scheduler).save_pretrained(save_directory, **options)

    def _fits(self, generator: Any, eta: float) -> bool:
        scheduler = self.scheduler
        if not isinstance(self.unet, FusedUNet2DModel) or scheduler._unsupported() is not None:
            return False
        # Their "learned" is a variance and the table's its log.
        if isinstance(scheduler, DDPMScheduler):
            return generator is None and scheduler.variance_type != "learned"
        return isinstance(scheduler, DDIMScheduler) and 0 <= eta <= 1 and (eta == 0 or generator is None)


def accelerate(pipe: Pipe) -> Pipe:
    """Swap scheduler and network of a `DDPMPipeline` or `DDIMPipeline` for the fused ones, in place.

    The pipeline keeps its class (a subclass of it), its arguments and its results: with the same generator the same
    images, to the rounding of float32. Calls run the whole loop at once, on the CPU in the native engine, except with a
    generator and a stochastic sampler, whose noise is drawn from it step by step.

    Args:
        pipe: The pipeline, with a `UNet2DModel` (or a `FusedUNet2DModel`) and a DDPM or DDIM scheduler.

    Returns:
        The same pipeline.

    Raises:
        ValueError: another pipeline, or a network or scheduler without a fused one.
    """
    if not isinstance(pipe, _PIPELINES):
        raise ValueError(
            f"accelerate takes a DDPMPipeline or DDIMPipeline, got {type(pipe).__name__}: give a network, such as "
            "pipe.unet, to fastdiff.accelerate, or set pipe.scheduler to one of fastdiff.compat.diffusers"
        )
    kinds: dict[str, Any] = {"DDPMScheduler": DDPMScheduler, "DDIMScheduler": DDIMScheduler}
    name = type(pipe.scheduler).__name__
    if name not in kinds:
        raise ValueError(f"accelerate takes a DDPMScheduler or DDIMScheduler, got {name}: set pipe.scheduler to one")
    unet = pipe.unet if isinstance(pipe.unet, FusedUNet2DModel) else FusedUNet2DModel.from_model(pipe.unet)
    scheduler = pipe.scheduler
    if type(scheduler) is not kinds[name]:
        scheduler = kinds[name].from_config(scheduler.config)
    pipe.register_modules(unet=unet, scheduler=scheduler)
    if not isinstance(pipe, _WholeLoop):
        pipe.__class__ = _whole_loop(cast(Any, type(pipe)))
    return pipe


@functools.cache
def _whole_loop(kind: type) -> type:
    return type(kind.__name__, (_WholeLoop, kind), {"__module__": kind.__module__, "__doc__": kind.__doc__})


def _empty_whole_loop(kind: type) -> Any:
    whole: Any = _whole_loop(kind)
    return whole.__new__(whole)
