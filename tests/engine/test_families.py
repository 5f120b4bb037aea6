"""Which classes of networks the engine knows."""

import pytest
from torch import nn

import fastdiff as fd
from fastdiff.compat.guided_diffusion.unet import SuperResModel
from fastdiff.engine import Unsupported
from fastdiff.engine.families import family_of, is_known
from fastdiff.nets.lucidrains import Unet
from support.encoder_networks import encoder
from support.networks import two_levels


def test_known_classes_and_what_they_take():
    unet, theirs = fd.UNet(two_levels()), Unet(dim=8, dim_mults=(1, 2))
    conditioned = Unet(dim=8, dim_mults=(1, 2), self_condition=True)
    larger = SuperResModel(16, 3, 32, 6, 1, {2}, channel_mult=(1, 2))
    assert all(map(is_known, (unet, theirs, conditioned, larger)))
    assert family_of(unet).takes_state_alone(unet)
    assert family_of(theirs).takes_state_alone(theirs)
    assert not family_of(conditioned).takes_state_alone(conditioned)
    assert not family_of(larger).takes_state_alone(larger)
    assert family_of(conditioned).channels(conditioned) == (3, 3)
    assert family_of(larger).channels(larger) == (3, 6)
    assert family_of(theirs).size(theirs) == (8, 8)


def test_a_classifier_needs_no_engine():
    with pytest.raises(Unsupported, match="got EncoderUNet; a classifier in evaluation runs in C"):
        family_of(encoder("adaptive"))


def test_other_classes_are_refused():
    class Changed(Unet):
        pass

    for network in (nn.Linear(1, 1), Changed(dim=8, dim_mults=(1, 2))):
        assert not is_known(network)
        with pytest.raises(Unsupported, match=r"takes a fastdiff\.UNet, got"):
            family_of(network)
