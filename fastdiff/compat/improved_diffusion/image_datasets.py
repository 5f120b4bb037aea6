"""Images from a folder as endless batches: improved-diffusion's loader, which flips and crops nothing at random."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from fastdiff.compat.guided_diffusion import image_datasets as guided

__all__ = ["ImageDataset", "load_data"]


def load_data(
    *, data_dir: str | Path, batch_size: int, image_size: int, class_cond: bool = False, deterministic: bool = False
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Endless batches of images [N, 3, H, W] in [-1, 1] and a dict of labels, "y" [N] with classes.

    Args:
        data_dir: A folder, searched with its sub-folders.
        batch_size: Images per batch of this process.
        image_size: Height and width to crop and resize to.
        class_cond: Take labels from the names of the files: what stands before the first "_".
        deterministic: Keep the order.

    Raises:
        ValueError: the folder holds no images, or fewer than a batch.
    """
    files, classes = guided.list_images(data_dir, class_cond)
    shard, num_shards = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    dataset = ImageDataset(image_size, files, classes, shard, num_shards)
    return guided.endless_batches(dataset, batch_size, shuffle=not deterministic)


class ImageDataset(guided.ImageDataset):
    """Images of a list of files; every `num_shards`-th of them, from `shard` on."""

    def __init__(
        self,
        resolution: int,
        image_paths: list[Path],
        classes: list[int] | None = None,
        shard: int = 0,
        num_shards: int = 1,
    ) -> None:
        super().__init__(resolution, image_paths, classes, shard, num_shards, random_crop=False, random_flip=False)

    def read(self, image: Image.Image) -> guided.Pixels:
        """The central square; palettes and alpha become RGB after the image is resized, as theirs do."""
        rgb = guided.resized(image, self.resolution).convert("RGB")
        return guided.central(np.array(rgb), self.resolution)
