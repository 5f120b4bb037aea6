"""A folder of images, whose labels stand in the names, as OpenAI's loader wants it."""

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def folder_of_images(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "data" / "inner").mkdir(parents=True)
    for i in range(6):
        pixels = rng.integers(0, 256, (70, 80, 3), dtype=np.uint8)
        place = tmp_path / "data" / ("inner" if i % 2 else "")
        Image.fromarray(pixels).save(place / f"{'cat' if i < 3 else 'dog'}_{i}.png")
    return tmp_path / "data"
