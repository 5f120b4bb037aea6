"""A small model, saved and loaded."""

import pytest

import fastdiff as fd
from support.command_line import small_model


@pytest.fixture(scope="session")
def model(tmp_path_factory):
    return small_model(tmp_path_factory.mktemp("generation") / "plain", size=8, channels=1)


@pytest.fixture(scope="session")
def pipe(model):
    return fd.Pipeline.from_pretrained(model)


@pytest.fixture(scope="session")
def labelled(tmp_path_factory):
    return fd.Pipeline.from_pretrained(
        small_model(tmp_path_factory.mktemp("generation") / "labelled", size=8, channels=1, num_classes=3)
    )
