"""`Trainer` of denoising-diffusion-pytorch on one device, without accelerate: its constructor, files and steps."""

from __future__ import annotations

import copy
import math
import os
import random
import warnings
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.data import DataLoader, Dataset

from fastdiff.convert.untrusted import read_tensors
from fastdiff.files.atomic import atomic_file
from fastdiff.files.decoding import open_image

__all__ = ["Trainer"]

VERSION = "2.3.4"
"""The release whose files these are."""

_MODES = {1: "L", 3: "RGB", 4: "RGBA"}
# Whose values are shares of 255.
_KEPT_MODES = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".tiff")


class _Folder(Dataset[Tensor]):
    def __init__(self, folder: str | Path, size: tuple[int, int], flip: bool, mode: str | None) -> None:
        self.paths = sorted(path for path in Path(folder).rglob("*") if path.suffix in _SUFFIXES)
        self.size = size
        self.flip = flip
        self.mode = mode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        path = self.paths[index]
        try:
            with open_image(path) as file:
                if self.mode is None and file.mode not in _KEPT_MODES:
                    raise ValueError(f"the values of mode {file.mode!r} are no colours: give convert_image_to")
                image = file if self.mode in (None, file.mode) else file.convert(self.mode)
                # Height and width are both given, so that nothing is left to crop.
                image = image.resize((self.size[1], self.size[0]), resample=Image.Resampling.BILINEAR)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        pixels = torch.from_numpy(np.array(image, dtype=np.float32) / 255)
        pixels = pixels[None] if pixels.dim() == 2 else pixels.permute(2, 0, 1)
        return pixels.flip(2) if self.flip and random.random() < 0.5 else pixels


class _Average(nn.Module):
    """The moving average of ema-pytorch with its defaults, and its names in the state dict."""

    initted: Tensor
    step: Tensor

    def __init__(self, model: nn.Module, beta: float, update_every: int) -> None:
        super().__init__()
        self.online_model = model
        self.ema_model = copy.deepcopy(model).requires_grad_(False)
        self.beta = beta
        self.update_every = update_every
        self.register_buffer("initted", torch.tensor(False))
        self.register_buffer("step", torch.tensor(0))

    @torch.no_grad()
    def update(self) -> None:
        """Take in the network: a copy for the first 100 steps, then a mean that grows longer with time."""
        step = int(self.step)
        self.step += 1
        if not self.initted:
            self.initted.fill_(True)
            rate = 0.0
        elif step % self.update_every:
            return
        else:
            epoch = max(0, step - 100)
            rate = 0.0 if step <= 100 else min(self.beta, max(0.0, 1 - (1 + epoch) ** (-2 / 3)))
        for average, value in zip(
            self.ema_model.state_dict().values(), self.online_model.state_dict().values(), strict=True
        ):
            if average.is_floating_point():
                average.lerp_(value, 1 - rate)


def _write_samples(path: Path, images: Tensor, columns: int) -> None:
    """Images [N, C, H, W] in [0, 1] as a PNG of their own size, in rows with black lines of 2 pixels between: what
    torchvision's `save_image` writes. One channel becomes three; four are RGB with alpha.

    Raises:
        ValueError: 2 channels, or more than 4, which no PNG has.
    """
    num, channels, height, width = images.shape
    if channels not in _MODES:
        raise ValueError(
            f"{path.name} cannot show {channels} channels: a picture has 1, 3 or 4; model files are written"
        )
    columns = min(columns, num)
    rows = -(-num // columns)
    sheet = torch.zeros(channels, rows * (height + 2) + 2, columns * (width + 2) + 2)
    for number, image in enumerate(images.float()):
        top, left = 2 + number // columns * (height + 2), 2 + number % columns * (width + 2)
        sheet[:, top : top + height, left : left + width] = image
    pixels = sheet.expand(3, -1, -1) if channels == 1 else sheet
    values = (pixels * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    with atomic_file(path) as file:
        Image.fromarray(values).save(file, format="PNG")


class Trainer:
    """Train a `GaussianDiffusion` on a folder of images; `save` and `load` use lucidrains' files, model-N.pt.

    Args:
        diffusion_model: The process with its network.
        folder: Of .jpg, .jpeg, .png and .tiff images, searched with its sub-folders; at least 100.
        train_batch_size: Images at a time.
        gradient_accumulate_every: Batches per step; times train_batch_size at least 16.
        augment_horizontal_flip: Flip half of the images.
        train_lr: Learning rate of Adam.
        train_num_steps: Steps.
        ema_update_every: Steps between updates of the average.
        ema_decay: Its decay.
        adam_betas: Of Adam.
        save_and_sample_every: Steps between files and pictures.
        num_samples: Images in a picture, a square number.
        results_folder: Where they go.
        amp: Mixed precision.
        mixed_precision_type: "fp16" (on a GPU) or "bf16".
        split_batches: Taken for compatibility: there is one process.
        convert_image_to: Pillow's mode; by the number of channels if None.
        calculate_fid: FID is not computed here; True warns once. See `fastdiff.evaluation.metrics`.
        inception_block_idx: Of FID.
        max_grad_norm: Bound on the norm of the gradient.
        num_fid_samples: Of FID.
        save_best_and_latest_only: Needs FID, so True raises.

    Raises:
        ValueError: arguments out of range, or too few images.
        RuntimeError: float16 without a GPU.
    """

    def __init__(
        self,
        diffusion_model: Any,
        folder: str | Path,
        *,
        train_batch_size: int = 16,
        gradient_accumulate_every: int = 1,
        augment_horizontal_flip: bool = True,
        train_lr: float = 1e-4,
        train_num_steps: int = 100000,
        ema_update_every: int = 10,
        ema_decay: float = 0.995,
        adam_betas: tuple[float, float] = (0.9, 0.99),
        save_and_sample_every: int = 1000,
        num_samples: int = 25,
        results_folder: str | Path = "./results",
        amp: bool = False,
        mixed_precision_type: str = "fp16",
        split_batches: bool = True,
        convert_image_to: str | None = None,
        calculate_fid: bool = True,
        inception_block_idx: int = 2048,
        max_grad_norm: float = 1.0,
        num_fid_samples: int = 50000,
        save_best_and_latest_only: bool = False,
    ) -> None:
        if math.isqrt(num_samples) ** 2 != num_samples:
            raise ValueError(f"number of samples must have an integer square root, got {num_samples}")
        if train_batch_size * gradient_accumulate_every < 16:
            raise ValueError(
                f"train_batch_size times gradient_accumulate_every must be at least 16, got "
                f"{train_batch_size} * {gradient_accumulate_every}"
            )
        if mixed_precision_type not in ("fp16", "bf16"):
            raise ValueError(f"mixed_precision_type must be 'fp16' or 'bf16', got {mixed_precision_type!r}")
        if save_best_and_latest_only:
            raise ValueError("save_best_and_latest_only needs FID, which this Trainer does not compute")
        if calculate_fid:
            warnings.warn("this Trainer does not compute FID; see fastdiff.evaluation.metrics", stacklevel=2)
        self.model = diffusion_model
        self.device: torch.device = diffusion_model.device
        half = mixed_precision_type == "fp16"
        if amp and half and self.device.type != "cuda":
            raise RuntimeError("amp in fp16 needs a GPU: take mixed_precision_type='bf16'")
        self.precision = None if not amp else (torch.float16 if half else torch.bfloat16)
        self.scaler = torch.amp.GradScaler("cuda", enabled=amp and half)
        self.channels = diffusion_model.channels
        self.image_size = diffusion_model.image_size
        self.num_samples = num_samples
        self.save_and_sample_every = save_and_sample_every
        self.batch_size = train_batch_size
        self.gradient_accumulate_every = gradient_accumulate_every
        self.train_num_steps = train_num_steps
        self.max_grad_norm = max_grad_norm
        mode = _MODES.get(self.channels) if convert_image_to is None else convert_image_to
        self.ds = _Folder(folder, self.image_size, augment_horizontal_flip, mode)
        if len(self.ds) < 100:
            raise ValueError(f"{folder} must hold at least 100 images ({', '.join(_SUFFIXES)}), got {len(self.ds)}")
        workers = (os.cpu_count() or 1) if self.device.type == "cuda" else 0
        loader = DataLoader(self.ds, batch_size=train_batch_size, shuffle=True, num_workers=workers)
        self.dl = chain.from_iterable(repeat(loader))
        self.opt = Adam(diffusion_model.parameters(), lr=train_lr, betas=adam_betas)
        self.ema = _Average(diffusion_model, ema_decay, ema_update_every).to(self.device)
        self.results_folder = Path(results_folder)
        self.results_folder.mkdir(parents=True, exist_ok=True)
        self.step = 0

    def save(self, milestone: int | str) -> None:
        """Write model-{milestone}.pt, which `fastdiff.Pipeline.from_pretrained` and lucidrains' Trainer read."""
        data = {
            "step": self.step,
            "model": self.model.state_dict(),
            "opt": self.opt.state_dict(),
            "ema": self.ema.state_dict(),
            "scaler": self.scaler.state_dict() if self.scaler.is_enabled() else None,
            "version": VERSION,
        }
        path = self.results_folder / f"model-{milestone}.pt"
        with atomic_file(path, sync=True) as file:
            torch.save(data, file)

    def load(self, milestone: int | str) -> None:
        """Go on from model-{milestone}.pt, of this class or of lucidrains'."""
        data = read_tensors(self.results_folder / f"model-{milestone}.pt", optimizers=True)
        self.model.load_state_dict(data["model"])
        self.step = data["step"]
        self.opt.load_state_dict(data["opt"])
        self.ema.load_state_dict(data["ema"])
        if self.scaler.is_enabled() and data.get("scaler"):
            self.scaler.load_state_dict(data["scaler"])

    def train(self) -> None:
        """Train until `train_num_steps`, with a file and a picture every `save_and_sample_every` steps."""
        while self.step < self.train_num_steps:
            self.model.train()
            for _ in range(self.gradient_accumulate_every):
                data = next(self.dl).to(self.device)
                with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                    loss = self.model(data) / self.gradient_accumulate_every
                self.scaler.scale(loss).backward()
            self.scaler.unscale_(self.opt)
            nn.utils.clip_grad_norm_(self.model.parameters(), self.max_grad_norm)
            self.scaler.step(self.opt)
            self.scaler.update()
            self.opt.zero_grad()
            self.step += 1
            self.ema.update()
            if self.step % self.save_and_sample_every == 0:
                self._save_and_sample(self.step // self.save_and_sample_every)

    def _save_and_sample(self, milestone: int) -> None:
        average: Any = self.ema.ema_model.eval()
        sizes = [min(self.batch_size, self.num_samples - done) for done in range(0, self.num_samples, self.batch_size)]
        images = torch.cat([average.sample(batch_size=size) for size in sizes])
        self.save(milestone)
        _write_samples(self.results_folder / f"sample-{milestone}.png", images.cpu(), math.isqrt(self.num_samples))
