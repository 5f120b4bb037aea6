"""The swiss roll's pictures: drawn from any run's states, and showing what they were given."""

import numpy as np
import pytest
import torch
from PIL import Image

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.cli.demo import swiss_roll_figures as figures
from support.gaussian_networks import gaussian_network

pytest.importorskip("matplotlib", reason="needs matplotlib: the extra 'plot'")

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(6))
POINTS = torch.randn(7, 40, 2, generator=torch.Generator().manual_seed(0))


def drawn(path):
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    assert min(pixels.shape[:2]) > 300
    return pixels


def test_trajectories_have_both_directions_in_their_colours(tmp_path):
    path = figures.draw_trajectories(tmp_path / "a.png", POINTS, POINTS[1:].flip(0), [4, 3, 2, 1, 0, -1])
    pixels = drawn(path).astype(int)
    half = pixels.shape[0] // 2
    # Blue points above, orange points below.
    bluish = (pixels[..., 2] - pixels[..., 0]) > 60
    assert bluish[:half].sum() > 4 * bluish[half:].sum()
    assert (-(pixels[..., 2] - pixels[..., 0]) > 60)[half:].sum() > 100


def test_animation_has_the_frames_asked_for_and_stays_on_the_last(tmp_path):
    path = figures.write_animation(tmp_path / "a.gif", POINTS[1:], [4, 3, 2, 1, 0, -1], 4)
    with Image.open(path) as moving:
        assert moving.n_frames == 4
        moving.seek(3)
        assert moving.info["duration"] > 2000


def test_score_density_and_bound_are_drawn(tmp_path):
    network = gaussian_network(DIFFUSION, 0.25)
    assert drawn(figures.draw_score(tmp_path / "score.png", network, DIFFUSION, POINTS)).std() > 10
    edge = np.linspace(-2, 2, 9)
    exact = -0.5 * (edge[:, None] ** 2 + edge[None] ** 2)
    exact[0, 0] = -np.inf
    assert drawn(figures.draw_density(tmp_path / "density.png", edge, exact, exact - 1)).std() > 10
    bound = likelihood.bound(network, DIFFUSION, 0.5 * POINTS[0].reshape(40, 2, 1), decoder="gaussian", clip=None)
    assert drawn(figures.draw_bound(tmp_path / "bound.png", bound, 1.0, 1.1)).std() > 5


def test_density_is_cut_off_far_from_the_data(tmp_path):
    """What lies below -12 nats has one colour: two pictures that differ there alone are equal."""
    edge = np.linspace(-2, 2, 5)
    exact = np.full((5, 5), -3.0)
    exact[0, 0] = -13.0
    low = exact.copy()
    low[0, 0] = -500.0
    pictures = [figures.draw_density(tmp_path / f"{i}.png", edge, v, v) for i, v in enumerate((exact, low))]
    assert np.array_equal(drawn(pictures[0]), drawn(pictures[1]))
