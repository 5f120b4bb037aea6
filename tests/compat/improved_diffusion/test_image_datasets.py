"""improved-diffusion's loader: nothing is flipped, and colours are made after the image is resized."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.compat.improved_diffusion.image_datasets import ImageDataset, load_data


def test_nothing_is_flipped_or_cropped_at_random(folder_of_images):
    options = {"data_dir": folder_of_images, "batch_size": 6, "image_size": 32, "deterministic": True}
    data = load_data(class_cond=True, **options)
    batches = [next(data) for _ in range(6)]
    assert all(torch.equal(batch, batches[0][0]) for batch, _ in batches)
    assert batches[0][1]["y"].tolist() == [0, 0, 1, 0, 1, 1]
    assert next(load_data(**options))[1] == {}
    for unknown in ("random_flip", "random_crop"):
        with pytest.raises(TypeError, match=unknown):
            load_data(**options, **{unknown: False})
    with pytest.raises(ValueError, match="fewer than a batch of 7"):
        load_data(**options | {"batch_size": 7})


def test_palettes_are_resized_as_palettes(tmp_path):
    numbers = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    image = Image.fromarray(numbers, mode="P")
    image.putpalette(np.random.default_rng(1).integers(0, 256, 768, dtype=np.uint8).tobytes())
    image.save(tmp_path / "a.png")
    pixels, _ = ImageDataset(16, [tmp_path / "a.png"])[0]
    colours = {tuple(colour) for colour in np.asarray(image.convert("RGB")).reshape(-1, 3).tolist()}
    found = np.rint((pixels + 1) * 127.5).astype(int).transpose(1, 2, 0).reshape(-1, 3)
    # Pillow picks one of the pixels: no colour is a mean of two.
    assert {tuple(colour) for colour in found.tolist()} <= colours
