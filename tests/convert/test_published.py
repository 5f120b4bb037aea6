"""Published weights by their files' names: the sizes that their authors state, and their processes."""

import pytest

from fastdiff.convert import published
from fastdiff.nets.config import PRESETS
from fastdiff.nets.unet import num_parameters

# Millions of parameters, from the papers and README files; Nichol and Dhariwal call their "100M" network 120M.
SIZES = {
    "64x64_diffusion.pt": 296,
    "128x128_diffusion.pt": 422,
    "256x256_diffusion.pt": 554,
    "256x256_diffusion_uncond.pt": 552,
    "512x512_diffusion.pt": 559,
    "cifar10_uncond_50M_500K.pt": 50,
    "imagenet64_uncond_100M_1500K.pt": 120,
    "imagenet64_cond_270M_250K.pt": 270,
    "lsun_uncond_100M_1200K_bs128.pt": 114,
    "diffusion_cifar10_model-790000.ckpt": 35.7,
    "ema_diffusion_lsun_church_model-4432000.ckpt": 114,
}


@pytest.mark.parametrize("name", SIZES)
def test_networks_have_their_published_sizes(name):
    known = published.known_file(name)
    assert known.source == f"the file's name, {name}"
    # The names round: "50M" is 52.5 million.
    assert num_parameters(known.unet) == pytest.approx(SIZES[name] * 1e6, rel=0.06)


def test_processes_are_those_of_the_papers():
    adm = published.known_file("256x256_diffusion.pt")
    assert (adm.diffusion.num_timesteps, adm.diffusion.schedule.name) == (1000, "linear")
    assert adm.diffusion.variance == "learned_range"
    assert adm.unet.num_classes == 1000
    iddpm = published.known_file("cifar10_uncond_50M_500K.pt")
    assert (iddpm.diffusion.num_timesteps, iddpm.diffusion.schedule.name) == (4000, "cosine")
    # The networks were trained on times rescaled to 1000.
    assert iddpm.diffusion.schedule.timesteps[-1] == pytest.approx(999.75)
    assert iddpm.unet.num_classes is None
    ho = published.known_file("diffusion_cifar10_model-790000.ckpt")
    assert ho.unet == PRESETS["ho-cifar10"]
    assert (ho.diffusion.num_timesteps, ho.diffusion.prediction) == (1000, "eps")


@pytest.mark.parametrize(
    "name", ["model.pt", "256x256_diffusion.pt.bak", "my_256x256_diffusion.pt", "256x256_classifier.pt"]
)
def test_other_files_are_not_known(name):
    assert published.known_file(name) is None


def test_presets_are_known_with_their_recipes_process():
    for name, config in PRESETS.items():
        known = published.known_preset(name)
        if name != "digits":
            assert known.unet == config
        if known.diffusion is not None:
            assert known.diffusion.model_channels(known.unet.in_channels) == known.unet.out_channels
    # As `fastdiff train --preset digits` builds it: the recipe changes the network, and the variance is learned.
    digits = published.known_preset("digits").unet
    assert (digits.out_channels, digits.num_res_blocks, digits.dropout) == (2, 1, 0.0)
    with pytest.raises(ValueError, match="unknown preset 'ho-cifar': did you mean 'ho-cifar10'"):
        published.known_preset("ho-cifar")
