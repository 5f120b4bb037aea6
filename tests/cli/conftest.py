"""Small saved models, and a folder of pictures."""

import numpy as np
import pytest
import torch
from PIL import Image

from fastdiff.pipeline import Pipeline
from support.command_line import small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "colour")


@pytest.fixture(scope="session")
def labelled_model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "labelled", num_classes=3)


@pytest.fixture(scope="session")
def upscaler(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("models") / "upscaler", num_classes=3, condition="low_res:4")


@pytest.fixture
def pictures(tmp_path):
    """A folder of eight 16x16 colour pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, pixels in enumerate(np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), dtype=np.uint8)):
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="session")
def archive(tmp_path_factory):
    path = tmp_path_factory.mktemp("arrays") / "a.npz"
    np.savez(path, np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8))
    return path


@pytest.fixture(scope="session")
def lively_model(tmp_path_factory):
    """A model whose last layer, which starts at 0, is drawn: what is computed otherwise shows."""
    folder = tmp_path_factory.mktemp("models")
    pipe = Pipeline.from_pretrained(small_model(folder / "still"))
    torch.nn.init.normal_(pipe.unet.conv_out.weight, std=0.1)
    return pipe.save_pretrained(folder / "lively")
