"""Writing models as other projects read them."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from fastdiff.convert.diffusers_config import DIFFUSERS_VERSION, scheduler_from_diffusion, unet_config_to_diffusers
from fastdiff.convert.layouts import to_layout
from fastdiff.convert.load import sidecar_path
from fastdiff.convert.openai_flags import flags_from_model, why_not_openai
from fastdiff.convert.score_sde import to_score_sde
from fastdiff.convert.untrusted import CHECKSUM_KEY, read_json
from fastdiff.files.atomic import atomic_file, atomic_folder, atomic_path
from fastdiff.files.checkpoint import FORMAT, DescribedModel, save_described
from fastdiff.files.contents import checksum, checksum_of_tensors
from fastdiff.nets.unet import UNet
from fastdiff.nets.wrapped import own_tensors, plain_network
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name

__all__ = ["Target", "save_as"]

Target = Literal["diffusers", "openai", "score_sde", "fastdiff"]


def save_as(pipe: DescribedModel, path: str | Path, target: Target) -> Path:
    """Write a model in a project's own form.

    Args:
        pipe: The model.
        path: Must not exist. "diffusers": a pipeline folder that `DDPMPipeline.from_pretrained` reads. "openai": a
            .pt file with the names of improved- and guided-diffusion; a JSON file beside it says what it cannot hold.
            "score_sde": a checkpoint of score_sde's in PyTorch. "fastdiff": a model folder.
        target: As above.

    Returns:
        The path.

    Raises:
        ValueError: the target is unknown, the path exists, the project has no such network, or the network is not a
            `fastdiff.UNet`.
        RuntimeError: it could not be written; nothing of it is left behind.
    """
    path = Path(path)
    if target not in get_args(Target):
        raise ValueError(f"unknown {spelt('to', 'target')} {target!r}: {nearest_name(str(target), get_args(Target))}")
    unet = plain_network(pipe.unet)
    if not isinstance(unet, UNet):
        raise ValueError(
            f"a {type(unet).__module__}.{type(unet).__name__} is an architecture of its own, which other "
            "projects do not have: it cannot be converted"
        )
    if path.exists():
        raise ValueError(f"{path} exists already and nothing is overwritten: choose another name")
    if target == "fastdiff":
        return save_described(path, pipe)
    path.parent.mkdir(parents=True, exist_ok=True)
    write = {"diffusers": _save_diffusers, "openai": _save_openai, "score_sde": _save_score_sde}[target]
    try:
        return write(pipe, unet, path)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise RuntimeError(f"could not write {path}: {_reason(error)}; nothing of it is left behind") from error


def _reason(error: BaseException) -> str:
    """What the system said, beneath what torch or safetensors made of it."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError):
            return cause.strerror or str(cause)
        cause = cause.__cause__ or cause.__context__
    match = re.search(r"I/O error: (.+) \(os error \d+\)", str(error))
    return match[1] if match else str(error)


def _shape(model: DescribedModel) -> list[int] | None:
    """[C, H, W] of the images, where it is known and they are not square."""
    shape = (model.metadata.get("data") or {}).get("shape")
    return shape if shape is not None and shape[1] != shape[2] else None


def _save_diffusers(model: DescribedModel, unet: UNet, folder: Path) -> Path:
    settings = unet_config_to_diffusers(unet.config)
    shape = _shape(model)
    if shape is not None:
        settings["sample_size"] = shape[1:]
    scheduler = scheduler_from_diffusion(model.diffusion)
    tensors = to_layout(own_tensors(unet), unet.config, "diffusers")
    index = {
        "_class_name": "DDPMPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    with atomic_folder(folder) as partial:
        (partial / "unet").mkdir()
        (partial / "scheduler").mkdir()
        for place, content in (
            ("model_index.json", index),
            ("unet/config.json", settings),
            ("scheduler/scheduler_config.json", scheduler),
        ):
            (partial / place).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        plain = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
        metadata = {"format": "pt", CHECKSUM_KEY: checksum_of_tensors(plain)}
        save_file(plain, partial / "unet" / "diffusion_pytorch_model.safetensors", metadata)
    return folder


def _save_score_sde(model: DescribedModel, unet: UNet, path: Path) -> Path:
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"a checkpoint of score_sde's is a file that ends in .pth, got {path}")
    content = to_score_sde(own_tensors(unet), unet.config, model.diffusion, model.metadata.get("step") or 0)
    with atomic_path(path, sync=True) as partial, partial.open("r+b") as file:
        torch.save(content, file)
    return path


def _save_openai(model: DescribedModel, unet: UNet, path: Path) -> Path:
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"an OpenAI checkpoint is a file that ends in .pt, got {path}")
    beside_path = sidecar_path(path)
    if beside_path.exists() and read_json(beside_path).get("format") != FORMAT:
        raise ValueError(f"{beside_path} exists already and nothing is overwritten: choose another name")
    config, diffusion = unet.config, model.diffusion
    tensors = to_layout(own_tensors(unet), config, "openai")
    reasons = why_not_openai(config, diffusion)
    if reasons:
        warnings.warn(
            f"{path.name} has OpenAI's names, but their code would compute something else: {'; '.join(reasons)}. "
            "fastdiff reads it back exactly",
            stacklevel=3,
        )
    beside: dict[str, Any] = {
        "format": FORMAT,
        "unet": config.to_dict(),
        "diffusion": diffusion.to_dict(),
        "scaling": model.scaling.to_dict(),
        "weights": model.metadata.get("weights"),
        "flags": None if reasons else flags_from_model(config, diffusion),
    }
    shape = _shape(model)
    if shape is not None:
        beside["data"] = {"shape": shape}
    # The name that people look for appears last, when both files are whole.
    with atomic_path(path, sync=True) as partial:
        with partial.open("r+b") as file:
            torch.save({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, file)
        beside["checksum"] = checksum(partial)
        with atomic_file(beside_path, sync=True) as file:
            file.write((json.dumps(beside) + "\n").encode())
    return path
