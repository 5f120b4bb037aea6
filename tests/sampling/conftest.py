"""The small network that the edits share."""

import pytest

from support.networks import small_unet


@pytest.fixture(scope="module")
def net():
    return small_unet()
