"""Whether network, process, data and settings fit each other. What a trainer refuses: test_trainer.py."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel

from fastdiff.training.fit import check_fit, plain_unet
from support.training_runs import CONFIG, SIMPLE, images, network


def test_the_network_is_found_in_its_wrappers() -> None:
    unet = network()
    assert plain_unet(unet) is unet
    assert plain_unet(DataParallel(unet)) is unet
    with pytest.raises(TypeError, match=r"must be a fastdiff\.UNet, got Linear"):
        plain_unet(nn.Linear(1, 1))
    with pytest.raises(TypeError, match=r"must be a fastdiff\.UNet, got int"):
        plain_unet(3)  # type: ignore[arg-type]


def test_what_fits_is_taken() -> None:
    check_fit(network(), SIMPLE, images(), CONFIG)
    check_fit(network(num_classes=3), SIMPLE, images(labels=True), CONFIG)
    check_fit(network(num_classes=4), SIMPLE, images(labels=True), dataclasses.replace(CONFIG, label_dropout=0.1))


def test_labels_that_the_network_has_no_room_for_are_refused() -> None:
    data = images(labels=True)
    assert data.labels is not None
    labels = torch.where(data.labels == 0, -1, data.labels)
    with pytest.raises(ValueError, match=r"labels must be in 0\.\.2, got -1\.\.2"):
        check_fit(network(num_classes=3), SIMPLE, dataclasses.replace(data, labels=labels), CONFIG)
    with pytest.raises(ValueError, match=r"label_dropout needs a null class behind those of the data"):
        check_fit(network(num_classes=3), SIMPLE, data, dataclasses.replace(CONFIG, label_dropout=0.1))
