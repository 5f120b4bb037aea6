"""Their loader of image folders: crops, scales, and labels by name."""

import pytest


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
