"""The rows of a step: exact where the denoised image stands still, and drawn noise in its place."""

import inspect
from itertools import pairwise

import pytest
import torch

from fastdiff.compat import k_diffusion as k
from support.k_diffusion_runs import SAME_RUN, SIGMAS, TO_SIGMA_MIN, start

IMAGE = 0.3


def still(x, sigma, **_):
    """A denoiser that always sees the same image: eps stays what it was, and every solver is exact."""
    return torch.full_like(x, IMAGE)


def straight(x):
    """The flow from the first level to the last for `still`."""
    return IMAGE + (x - IMAGE) * float(TO_SIGMA_MIN[-1] / TO_SIGMA_MIN[0])


WALKS = {
    name: getattr(k, name)
    for name in (
        "sample_euler", "sample_euler_ancestral", "sample_heun", "sample_dpm_2", "sample_dpm_2_ancestral", "sample_lms",
        "sample_dpmpp_2s_ancestral", "sample_dpmpp_sde", "sample_dpmpp_2m", "sample_dpmpp_2m_sde",
        "sample_dpmpp_3m_sde",
    )
}  # fmt: skip


def without_noise(function):
    return {"eta": 0.0} if "eta" in inspect.signature(function).parameters else {}


@pytest.mark.parametrize("name", WALKS)
def test_every_solver_is_exact_where_the_image_stands_still(name):
    x = start()
    result = WALKS[name](still, x, TO_SIGMA_MIN, **without_noise(WALKS[name]))
    torch.testing.assert_close(result, straight(x), rtol=SAME_RUN, atol=SAME_RUN)


@pytest.mark.parametrize("name", WALKS)
def test_every_solver_ends_in_the_image_at_level_0(name):
    torch.manual_seed(0)
    result = WALKS[name](still, start(), SIGMAS)
    torch.testing.assert_close(result, torch.full_like(result, IMAGE), rtol=0, atol=SAME_RUN)


@pytest.mark.parametrize("name", [name for name in WALKS if without_noise(WALKS[name])])
def test_noise_keeps_the_level_s_variance(name):
    """With a still image the state is that image and noise of the level's scale, whatever part of it is new."""
    x = IMAGE + float(SIGMAS[0]) * torch.randn(40_000, 1, 1, 1, dtype=torch.float64)
    torch.manual_seed(1)
    options = {"noise_sampler": lambda sigma, after: torch.randn_like(x)}
    result = WALKS[name](still, x, TO_SIGMA_MIN, **options)
    # The standard deviation of a variance of so many numbers is 0.7 % of it; four of them.
    assert float(((result - IMAGE) / TO_SIGMA_MIN[-1]).var()) == pytest.approx(1, abs=0.03)
    # The standard error of the mean of so many numbers is 0.005; four of them.
    assert float((result - IMAGE).mean() / TO_SIGMA_MIN[-1]) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize(
    ("sigmas", "said"),
    [
        (torch.tensor([1.0]), r"\[N \+ 1\], falling, got shape \[1\]"),
        (torch.ones(2, 2), r"got shape \[2, 2\]"),
        (torch.tensor([1.0, 1.0]), "fall strictly"),
        (torch.tensor([1.0, 2.0, 1.0]), "fall strictly"),
        (torch.tensor([1.0, -0.1]), "to 0 or above"),
    ],
    ids=str,
)
def test_levels_that_do_not_fall_are_refused(sigmas, said):
    with pytest.raises(ValueError, match=said):
        k.sample_euler(still, start(), sigmas)


def test_the_noise_of_each_step_is_asked_for_with_its_levels():
    asked = []

    def draw(sigma, after):
        asked.append((float(sigma), float(after)))
        return torch.zeros_like(start())

    k.sample_euler_ancestral(still, start(), SIGMAS, noise_sampler=draw)
    # The last step, to level 0, has none.
    assert asked == [(float(a), float(b)) for a, b in pairwise(SIGMAS[:-1])]
