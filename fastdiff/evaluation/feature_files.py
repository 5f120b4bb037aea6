"""Feature networks that are read from files of one's own; nothing is downloaded."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import pickle
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from fastdiff.evaluation.feature_values import Features, require_values
from fastdiff.process.arguments import spelt

__all__ = ["KINDS", "dinov2", "inception", "torchscript"]

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_FROM = "https://github.com/toshas/torch-fidelity/releases/tag/v0.2.0"
# ImageNet's, by which DINOv2 was trained.
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DINO_SIZE = 224


def inception(text: str, path: str, device: torch.device) -> Features:
    """Inception v3 as FID was defined, by torch-fidelity: 2,048 features, and logits without bias.

    Args:
        text: What was asked for.
        path: torch-fidelity's weights.
        device: Where the network goes.

    Raises:
        ValueError: the file is missing or holds something else.
        RuntimeError: torch-fidelity is not installed.
    """
    file = _existing(
        text,
        path,
        f"Inception needs torch-fidelity's {INCEPTION_FILE}: fetch it from {INCEPTION_FROM}, and give its path",
    )
    module = _fidelity("feature_extractor_inceptionv3")
    try:
        # torch-fidelity unpickles whatever it is given: here a file of more than tensors is refused before.
        torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        network = module.FeatureExtractorInceptionV3(
            "inception-v3-compat", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(file)
        ).to(device)
    except (RuntimeError, OSError, ValueError, KeyError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(f"{file} holds no weights of torch-fidelity's Inception ({_line(error)})") from error

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        features, logits = network(_colour(images.to(device)))
        return require_values(features, text), logits.cpu()

    resize = "299x299, bilinear as in TensorFlow 1"
    return Features(text, compute, True, {"resize": resize, "sha256": _sha256(file), "layer": "2048"})


def dinov2(text: str, path: str, device: torch.device) -> Features:
    """DINOv2 by transformers: the class token after the last norm.

    Args:
        text: What was asked for.
        path: A folder of `save_pretrained`, with config.json and model.safetensors.
        device: Where the network goes.

    Raises:
        ValueError: the folder is missing or holds something else.
        RuntimeError: transformers is not installed.
    """
    need = "DINOv2 needs a folder with config.json and model.safetensors, as of facebook/dinov2-large: give its path"
    folder = _existing(text, path, need)
    if not all((folder / name).is_file() for name in ("config.json", "model.safetensors")):
        raise ValueError(f"{spelt('features', 'the features')} {text!r}: {need}; {folder} has not both")
    try:
        transformers = importlib.import_module("transformers")
    except ImportError as error:
        raise RuntimeError(f'DINOv2 needs transformers ({error}): pip install "fastdiff-ddpm[dinov2]"') from error
    try:
        network = transformers.Dinov2Model.from_pretrained(folder, local_files_only=True, use_safetensors=True)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no DINOv2 of transformers ({_line(error)})") from error
    network = network.to(device).eval()
    mean, deviation = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (_MEAN, _DEVIATION))

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        x = _colour(images.to(device)).to(torch.float32)
        x = functional.interpolate(x, (_DINO_SIZE, _DINO_SIZE), mode="bicubic", antialias=True).round().clamp(0, 255)
        with torch.no_grad():
            found = network((x / 255 - mean) / deviation).pooler_output
        return require_values(found, text), None

    resize = f"{_DINO_SIZE}x{_DINO_SIZE}, bicubic with antialiasing"
    return Features(text, compute, False, {"resize": resize, "sha256": _sha256(folder / "model.safetensors")})


def torchscript(text: str, path: str, device: torch.device) -> Features:
    """A TorchScript module of one's own, or NVIDIA's inception-2015-12-05.pt.

    It is given uint8 [n, C, H, W] and returns features [n, D], or features and logits [n, K]. Where its forward has an
    argument return_features, as NVIDIA's has, that is true.

    Args:
        text: What was asked for.
        path: The module.
        device: Where it goes.

    Raises:
        ValueError: the file is missing or holds something else.
    """
    file = _existing(text, path, "give the path of a TorchScript module")
    try:
        network: Any = torch.jit.load(str(file), map_location=device).eval()
    except (RuntimeError, OSError, ValueError) as error:
        raise ValueError(f"{file} is no TorchScript module ({_line(error)})") from error
    schema = network.forward.schema
    options = {"return_features": True} if "return_features" in [one.name for one in schema.arguments] else {}

    def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
        try:
            with torch.no_grad():
                found = network(images.to(device), **options)
        except RuntimeError as error:
            raise ValueError(
                f"{file} does not take uint8 images of {list(images.shape[1:])} ({_line(error)})"
            ) from error
        pair = found if isinstance(found, tuple) else (found, None)
        if len(pair) != 2 or not isinstance(pair[0], Tensor):
            raise ValueError(f"{file} must return features [n, D], or features and logits, got {type(found).__name__}")
        return require_values(pair[0], str(file)), None if pair[1] is None else pair[1].cpu()

    has_classes = schema.returns[0].type.kind() == "TupleType"
    return Features(text, compute, has_classes, {"resize": "the module's own", "sha256": _sha256(file)})


KINDS: dict[str, Callable[[str, str, torch.device], Features]] = {"inception": inception, "dinov2": dinov2}
"""Networks that are named before the path of their weights."""


def _existing(text: str, path: str, need: str) -> Path:
    file = Path(path)
    if not path or not file.exists():
        raise ValueError(f"{spelt('features', 'the features')} {text!r}: there is no file {path or 'named'}; {need}")
    return file


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _fidelity(name: str) -> Any:
    """A module of torch-fidelity, also without torchvision, which its package imports and this module does not."""
    spec = importlib.util.find_spec("torch_fidelity")
    if spec is None or spec.submodule_search_locations is None:
        raise RuntimeError('Inception needs torch-fidelity: pip install "fastdiff-ddpm[fidelity]"')
    try:
        return importlib.import_module(f"torch_fidelity.{name}")
    except ImportError:
        package = types.ModuleType("torch_fidelity")
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules["torch_fidelity"] = package
        try:
            return importlib.import_module(f"torch_fidelity.{name}")
        finally:
            del sys.modules["torch_fidelity"]


def _colour(images: Tensor) -> Tensor:
    """Three channels: a grey one is repeated."""
    channels = images.shape[1]
    if channels not in (1, 3):
        raise ValueError(f"the network takes images of 1 or 3 channels, and these have {channels}: use 'builtin'")
    return images if channels == 3 else images.expand(-1, 3, -1, -1)


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
