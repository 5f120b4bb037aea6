"""The lucidrains U-Net against theirs, live: one state dict, two networks."""

import pytest

from support.lucidrains_networks import NETWORKS, assert_same, both


@pytest.mark.parametrize("name", NETWORKS)
def test_unet_gives_the_outputs_of_lucidrains(name):
    theirs, ours = both(name)
    assert_same(ours, theirs)
