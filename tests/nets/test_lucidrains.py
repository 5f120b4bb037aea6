"""The lucidrains U-Net against theirs, live: one state dict, two networks."""

import pytest
import torch

from fastdiff.nets.lucidrains import Unet
from support import peer_lucidrains
from support.lucidrains_networks import NETWORKS, assert_same, both


@pytest.mark.parametrize("name", NETWORKS)
def test_unet_gives_the_outputs_of_lucidrains(name):
    theirs, ours = both(name)
    assert_same(ours, theirs)


@pytest.mark.parametrize("name", NETWORKS)
def test_unet_of_a_seed_is_theirs_and_its_parameters_stand_in_their_order(name):
    """An optimizer's file knows parameters by their number."""
    networks = []
    for kind in (peer_lucidrains.load().Unet, Unet):
        torch.manual_seed(0)
        networks.append((kind(**NETWORKS[name]), torch.rand(1)))
    (theirs, after_theirs), (ours, after_ours) = networks
    assert [name for name, _ in ours.named_parameters()] == [name for name, _ in theirs.named_parameters()]
    for key, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], value), key
    assert torch.equal(after_ours, after_theirs)
