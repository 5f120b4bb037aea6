"""What is said of the classes of the data."""

import dataclasses

import pytest
import torch

from fastdiff.cli.classes import about_classes
from fastdiff.files.data import DataScaling, ImageData


@pytest.mark.parametrize(
    ("names", "num_classes", "expected"),
    [
        (("cat", "dog"), None, ["2 classes found (cat, dog), not used: with --set unet.num_classes=2 the network"]),
        (("cat", "dog"), 2, ["2 classes: cat, dog"]),
        (("cat", "dog"), 3, ["2 classes: cat, dog; the network has room for 3"]),
        (None, 2, ["2 classes: 0, 1"]),
        (("test", "train"), None, ["2 classes found (test, train), not used", "the folders test, train look like"]),
    ],
    ids=["unused", "used", "null class", "no names", "splits"],
)
def test_classes_are_said(names, num_classes, expected):
    data = ImageData(torch.zeros(4, 1, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, DataScaling(), "here", names)
    said = about_classes(data, num_classes)
    assert len(said) == len(expected)
    assert all(line.startswith(start) for line, start in zip(said, expected, strict=True)), said
    assert about_classes(dataclasses.replace(data, labels=None), None) == []
