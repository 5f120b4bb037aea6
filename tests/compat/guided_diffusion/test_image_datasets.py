"""Their loader of image folders: crops, scales, and labels by name."""

import numpy as np
import pytest
from PIL import Image


def test_load_data_crops_scales_and_labels_by_name(folder_of_images):
    from fastdiff.compat.guided_diffusion.image_datasets import load_data

    data = load_data(data_dir=folder_of_images, batch_size=6, image_size=32, class_cond=True, deterministic=True)
    for _ in range(2):
        batch, labels = next(data)
        assert batch.shape == (6, 3, 32, 32)
        assert -1 <= float(batch.min()) < float(batch.max()) <= 1
        assert sorted(labels["y"].tolist()) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="no images"):
        load_data(data_dir=folder_of_images / "none", batch_size=1, image_size=8)
    crop = next(load_data(data_dir=folder_of_images, batch_size=2, image_size=24, random_crop=True))[0]
    assert crop.shape == (2, 3, 24, 24)


def test_links_to_folders_are_followed(folder_of_images, tmp_path):
    from fastdiff.compat.guided_diffusion.image_datasets import list_images

    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "all").symlink_to(folder_of_images, target_is_directory=True)
    files, classes = list_images(tmp_path / "links", True)
    # Folders stand among files by name.
    assert [path.stem for path in files] == ["cat_0", "cat_2", "dog_4", "cat_1", "dog_3", "dog_5"]
    assert classes == [0, 0, 1, 0, 1, 1]


def worker_flips(seed, num_images, num_epochs):
    """Flips of a loader with one worker process, whose `random` is seeded with what the loader drew."""
    import random

    import torch

    torch.manual_seed(seed)
    found = []
    for _ in range(num_epochs):
        drawn = random.Random(int(torch.empty((), dtype=torch.int64).random_()))
        found.append([drawn.random() < 0.5 for _ in range(num_images)])
    return found


def test_flips_are_those_of_a_worker_process(tmp_path):
    import torch

    from fastdiff.compat.guided_diffusion.image_datasets import load_data

    ramp = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))
    for i in range(8):
        Image.fromarray(ramp).save(tmp_path / f"{i}.png")
    torch.manual_seed(3)
    data = load_data(data_dir=tmp_path, batch_size=8, image_size=16, deterministic=True)
    flips = [(batch[:, 0, 0, 0] > 0).tolist() for batch, _ in (next(data) for _ in range(3))]
    assert flips == worker_flips(3, 8, 3)
    assert any(map(any, flips))


def test_palettes_keep_their_colours_and_deep_images_are_refused(tmp_path):
    from fastdiff.compat.guided_diffusion.image_datasets import ImageDataset

    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 1), dtype=np.uint8).repeat(3, axis=2) // [1, 2, 4]
    palette = Image.fromarray(colours.astype(np.uint8)).quantize(64)
    palette.save(tmp_path / "a.png")
    pixels, _ = ImageDataset(16, [tmp_path / "a.png"], random_flip=False)[0]
    # Of one size with the result, so that neither filter changes a value.
    np.testing.assert_array_equal(np.rint((pixels + 1) * 127.5), np.array(palette.convert("RGB")).transpose(2, 0, 1))
    deep = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: more than 8 bits per channel"):
        ImageDataset(16, [tmp_path / "deep.png"])[0]
