"""A seed for each sample: the same picture whatever its batch."""

import pytest
import torch

import fastdiff as fd
from fastdiff.sampling.known_pixels import Known
from support.gaussian_networks import gaussian_network

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(100), "v")
SEEDS = [7, 2**64 - 1, 7, 0, 3]


def run(table, seed, count, network=None, **options):
    network = gaussian_network(DIFFUSION, 0.25) if network is None else network
    return fd.sample(network, table, shape=(count, 2, 5, 3), seed=seed, progress=False, **options)


@pytest.mark.parametrize("name", ["ddim", "ddpm", "dpmpp_sde", "euler_ancestral", "predictor_corrector"])
def test_seeds_give_what_each_gives_alone(name):
    table = fd.samplers.build(name, DIFFUSION, 6)
    together = run(table, SEEDS, len(SEEDS))
    alone = torch.cat([run(table, seed, 1) for seed in SEEDS])
    assert torch.equal(together, alone)
    assert torch.equal(run(table, SEEDS[1:4], 3), together[1:4])


@pytest.mark.parametrize("name", ["ddim", "ddpm"])
def test_seeds_of_the_engine_are_those_of_each_alone(name):
    torch.manual_seed(0)
    config = fd.UNetConfig(
        image_size=8, in_channels=1, out_channels=1, channels=32, channel_mult=(1, 2), num_res_blocks=1,
        attention_resolutions=(4,),
    )  # fmt: skip
    unet = fd.UNet(config).eval()
    table = fd.samplers.build(name, DIFFUSION, 4, clip=1.0)
    options = {"progress": False, "runner": "native"}
    together = fd.sample(unet, table, shape=(3, 1, 8, 8), seed=[5, 1, 2], **options)
    alone = torch.cat([fd.sample(unet, table, shape=(1, 1, 8, 8), seed=seed, **options) for seed in (5, 1, 2)])
    assert torch.equal(together, alone)


def test_seeds_with_ids_are_those_samples_of_theirs():
    table = fd.samplers.ddpm(DIFFUSION, 6)
    together = run(table, [7, 3], 2, sample_ids=[4, 9])
    assert torch.equal(together[:1], run(table, 7, 1, sample_ids=[4]))
    assert torch.equal(together[1:], run(table, 3, 1, sample_ids=[9]))


def test_seeds_noise_known_pixels_too():
    table = fd.samplers.ddpm(DIFFUSION, 6)
    image, mask = torch.rand(3, 2, 5, 3), torch.tensor([True, False, True])

    def with_known(seed, part):
        return run(table, seed, len(image[part]), known=Known(image[part], mask))

    together = with_known(SEEDS[:3], slice(None))
    assert torch.equal(together, torch.cat([with_known(SEEDS[i], slice(i, i + 1)) for i in range(3)]))


def test_seeds_in_half_and_double_precision():
    table = fd.samplers.ddpm(DIFFUSION, 6)
    together = run(table, SEEDS, 5, dtype=torch.float64)
    assert torch.equal(together, torch.cat([run(table, seed, 1, dtype=torch.float64) for seed in SEEDS]))


def test_seeds_of_numpy_and_torch_are_numbers():
    table = fd.samplers.ddim(DIFFUSION, 3)
    assert torch.equal(run(table, torch.tensor([4, 5]), 2), run(table, [4, 5], 2))
    assert torch.equal(run(table, torch.tensor(4), 2), run(table, 4, 2))


def test_seeds_of_an_empty_batch():
    assert run(fd.samplers.ddpm(DIFFUSION, 3), [], 0).shape == (0, 2, 5, 3)


@pytest.mark.parametrize("seed", [[1, 2], [1, 2, 3, 4], [], "12", [0.5, 1, 2], [-1, 1, 2], [1, 2, 2**64], None, 1.5])
def test_seeds_that_do_not_fit_are_a_sentence(seed):
    with pytest.raises(ValueError, match="seed must be"):
        run(fd.samplers.ddim(DIFFUSION, 3), seed, 3)
