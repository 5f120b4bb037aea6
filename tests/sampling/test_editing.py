"""Encode, decode, vary, interpolate and inpaint: exact where they should be, whatever the batch."""

import math

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import samplers
from fastdiff.sampling import editing
from support.gaussian_networks import Mixture, gaussian_network
from support.tolerances import BATCH_SPLIT, FLOAT64, FLOAT64_DIFFERENCE

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(40))
GAUSSIAN = gaussian_network(DIFFUSION, 0.25)
X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize(("order", "tolerance"), [(1, 0.1), (2, 0.01), (4, 1e-4)])
def test_encode_follows_the_closed_form(order, tolerance):
    x = X.double()
    abar = float(DIFFUSION.schedule.alphas_cumprod[-1])
    latent = editing.encode(GAUSSIAN, DIFFUSION, x, order=order, steps=40)
    gain = math.sqrt((abar * 0.25 + 1 - abar) / 0.25)
    assert float((latent / (gain * x) - 1).abs().max()) < tolerance
    back = editing.decode(GAUSSIAN, DIFFUSION, latent, order=order, steps=40)
    assert float((back - x).abs().max()) < 2 * tolerance


def test_round_trip_error_is_that_of_the_round_trip(net):
    for options in ({"order": 1}, {"order": 3, "steps": 8}, {"exact": True, "iterations": 3, "steps": 8}):
        plain = {key: value for key, value in options.items() if key != "iterations"}
        back = editing.decode(net, DIFFUSION, editing.encode(net, DIFFUSION, X, **options), **plain)
        expected = (back - X).square().flatten(1).mean(dim=1).sqrt()
        error = editing.round_trip_error(net, DIFFUSION, X, **options)
        # Small differences of float32 images; the exact form's are as small as their roundings.
        torch.testing.assert_close(error.float(), expected, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
@pytest.mark.parametrize("steps", [5, 25])
def test_exact_encoding_comes_back_exactly(schedule, steps):
    x = X.double()
    diffusion = fd.Diffusion(fd.NoiseSchedule.named(schedule, 100))
    model = gaussian_network(diffusion, 0.25)
    rough = editing.round_trip_error(model, diffusion, x, order=1, steps=steps)
    exact = editing.round_trip_error(model, diffusion, x, exact=True, steps=steps)
    # Five iterations, each of which gains about a digit.
    assert float(exact.max()) < 1e-3 * float(rough.max()) < 1e-3
    more = editing.round_trip_error(model, diffusion, x, exact=True, iterations=20, steps=steps)
    assert float(more.max()) < 10 * FLOAT64


def test_exact_encoding_of_a_mixture_comes_back_exactly():
    """Far from linear, and with directions in which the data have almost no variance."""
    mixture, diffusion = Mixture([[-0.6, 0.0], [0.5, 0.5], [0.2, -0.7]], 0.003), fd.Diffusion(DIFFUSION.schedule, "x0")
    x = mixture.sample(50)
    errors = [
        float(
            editing.round_trip_error(mixture.network(diffusion), diffusion, x, exact=True, steps=20, iterations=n).max()
        )
        for n in (5, 15, 40)
    ]
    assert errors[0] > errors[1] > errors[2]
    # Forty iterations in directions that gain little from each.
    assert errors[2] < 1e-5


def test_vary_at_the_ends(net):
    assert torch.equal(editing.vary(net, DIFFUSION, X, strength=0, seed=7), X)
    fresh = editing.vary(net, DIFFUSION, X, strength=1, seed=7, steps=10, sampler="ddpm")
    table = samplers.ddpm(DIFFUSION, 10)
    assert torch.equal(fresh, fd.sample(net, table, shape=tuple(X.shape), seed=7, progress=False))
    assert torch.equal(fresh, editing.vary(net, DIFFUSION, -X, strength=1.0, seed=7, steps=10, sampler="ddpm"))


def test_vary_moves_further_with_strength():
    x = X.double()
    grid = editing.vary(GAUSSIAN, DIFFUSION, x, strength=[0, 0.1, 0.4, 0.8, 1], seed=1)
    assert grid.shape == (5, *x.shape)
    distance = (grid - x).square().flatten(1).mean(dim=1)
    assert distance[0] == 0
    assert (distance.diff() > 0).all()
    one = editing.vary(GAUSSIAN, DIFFUSION, x, strength=0.4, seed=1)
    torch.testing.assert_close(one, grid[2], rtol=0, atol=0)
    assert not torch.equal(one, editing.vary(GAUSSIAN, DIFFUSION, x, strength=0.4, seed=2))


def test_edits_of_a_sample_do_not_depend_on_the_batch(net):
    mask = torch.zeros(8, 8)
    mask[:, :4] = 1
    calls = [
        lambda x, ids: editing.vary(net, DIFFUSION, x, strength=0.5, steps=10, sampler="ddpm", sample_ids=ids),
        lambda x, ids: editing.inpaint(net, DIFFUSION, x, mask, steps=10, jump_length=3, sample_ids=ids),
        lambda x, ids: editing.interpolate(net, DIFFUSION, x, -x.flip(2), level=0.5, steps=5, sample_ids=ids),
        lambda x, ids: editing.interpolate(
            net, DIFFUSION, x, -x.flip(2), level=0.5, steps=5, stochastic=True, mode="linear", sample_ids=ids
        ),
    ]
    for call in calls:
        whole = call(X, [5, 6, 7])
        torch.testing.assert_close(call(X[1:2], [6]), whole[1:2], rtol=BATCH_SPLIT, atol=BATCH_SPLIT)


@pytest.mark.parametrize("mode", ["slerp", "linear"])
@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_interpolate_ends_at_both_images(mode, level):
    a, b = X.double(), X.double().flip(3)
    found = editing.interpolate(
        GAUSSIAN, DIFFUSION, a, b, weight=[0, 0.5, 1], mode=mode, level=level, order=4, steps=40
    )
    assert found.shape == (3, *a.shape)
    # What encoding and decoding by order 4 leave in 40 steps.
    assert float((found[0] - a).abs().max()) < 2e-3
    assert float((found[2] - b).abs().max()) < 2e-3
    half = editing.interpolate(GAUSSIAN, DIFFUSION, a, b, mode=mode, level=level, order=4, steps=40)
    torch.testing.assert_close(half, found[1], rtol=0, atol=0)
    # For Gaussian data the flow is linear, so mixing at any level is mixing pixels.
    expected = editing.slerp(a, b, 0.5) if mode == "slerp" else (a + b) / 2
    assert float((half - expected).abs().max()) < 4e-3


def test_interpolate_of_noised_images_shares_the_noise():
    a, b = X.double(), X.double()
    same = editing.interpolate(GAUSSIAN, DIFFUSION, a, b, weight=[0.0, 0.3], mode="linear", stochastic=True, level=0.5)
    torch.testing.assert_close(same[0], same[1], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64_DIFFERENCE)


def test_slerp_stays_on_the_sphere():
    rng = np.random.default_rng(0)
    a, b = (torch.from_numpy(rng.normal(size=(4, 1, 6, 6))) for _ in range(2))
    unit_a, unit_b = (v / v.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1) for v in (a, b))
    for weight in (0.0, 0.25, 0.5, 1.0):
        mixed = editing.slerp(unit_a, unit_b, weight)
        torch.testing.assert_close(mixed.flatten(1).norm(dim=1), torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(editing.slerp(a, a, 0.3), a)
    torch.testing.assert_close(editing.slerp(a, b, 1.0), b)
    assert torch.isfinite(editing.slerp(a, -a, 0.5)).all()


def test_inpaint_fills_from_the_conditional_distribution():
    """Two pixels of correlation r: given the known one, RePaint's filling approaches N(r x, (1 - r^2) s^2)."""
    diffusion = fd.Diffusion(fd.NoiseSchedule.cosine(100), "x0", "fixed_small")
    r, variance, count = 0.8, 0.09, 4000
    covariance = variance * torch.tensor([[1.0, r], [r, 1.0]], dtype=torch.float64)
    abar = torch.from_numpy(diffusion.schedule.alphas_cumprod.copy())

    def model(x, t):
        a = abar[t[0]]
        gain = torch.sqrt(a) * covariance @ torch.linalg.inv(a * covariance + (1 - a) * torch.eye(2))
        return (x.double() @ gain.T).to(x.dtype)

    x = torch.tensor([[0.4, 0.0]]).repeat(count, 1)
    options = {"steps": 100, "jump_length": 5, "jump_repeats": 6}
    filled = editing.inpaint(model, diffusion, x, torch.tensor([1, 0]), **options)[:, 1]
    assert torch.equal(editing.inpaint(model, diffusion, x[:7], torch.tensor([1, 0]), **options)[:, 1], filled[:7])
    # RePaint is a heuristic: the mean comes within a tenth of the way, the spread within 15 %.
    assert float(filled.mean()) == pytest.approx(r * 0.4, abs=0.1 * r * 0.4)
    assert float(filled.std()) == pytest.approx(math.sqrt((1 - r * r) * variance), rel=0.15)


HALF = torch.zeros(8, 8)
BAD = {
    "range": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X * 255), r"\[-1, 1\]"),
    "bytes": (lambda: editing.encode(GAUSSIAN, DIFFUSION, X.to(torch.uint8)), "floating point"),
    "nan": (lambda: editing.encode(GAUSSIAN, DIFFUSION, X * math.nan), "NaN"),
    "empty": (lambda: editing.encode(GAUSSIAN, DIFFUSION, X[:0]), "at least one"),
    "strength": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength=1.5), "strength"),
    "strength of nothing": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength=math.nan), "strength"),
    "strength in words": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength="much"), "strength must be one number"),
    "one strength of two": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength=[0.5, -0.5]), "strength"),
    "strengths": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength=[]), "strength"),
    "sampler": (lambda: editing.vary(GAUSSIAN, DIFFUSION, X, strength=0, sampler="dimm"), "ddim"),
    "level": (lambda: editing.encode(GAUSSIAN, DIFFUSION, X, level=0), "level"),
    "order": (lambda: editing.encode(GAUSSIAN, DIFFUSION, X, order=7), "order"),
    "weight": (lambda: editing.interpolate(GAUSSIAN, DIFFUSION, X, X, weight=2), "weight"),
    "weights": (lambda: editing.interpolate(GAUSSIAN, DIFFUSION, X, X, weight=[[0.5]]), "weight"),
    "level to mix at": (
        lambda: editing.interpolate(GAUSSIAN, DIFFUSION, X, X, level=1.2),
        r"level must be in \[0, 1\]",
    ),
    "mode": (lambda: editing.interpolate(GAUSSIAN, DIFFUSION, X, X, mode="slurp"), "slerp"),
    "shapes": (lambda: editing.interpolate(GAUSSIAN, DIFFUSION, X, X[:1]), "one shape"),
    "mask shape": (lambda: editing.inpaint(GAUSSIAN, DIFFUSION, X, HALF[:5]), "mask must have the images' shape"),
    "mask channels": (lambda: editing.inpaint(GAUSSIAN, DIFFUSION, X, HALF.expand(3, 3, 8, 8)), "mask must have"),
    "mask values": (lambda: editing.inpaint(GAUSSIAN, DIFFUSION, X, HALF + 0.5), "boolean"),
}


@pytest.mark.parametrize("case", BAD)
def test_editing_refuses(case):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("one", [np.float32(0.5), np.float64(0.5), torch.tensor(0.5)])
def test_numbers_of_numpy_and_torch_are_single_numbers(one):
    assert torch.equal(
        editing.vary(GAUSSIAN, DIFFUSION, X, strength=one), editing.vary(GAUSSIAN, DIFFUSION, X, strength=0.5)
    )
    assert editing.interpolate(GAUSSIAN, DIFFUSION, X, X, weight=one, level=0).shape == X.shape
    assert editing.interpolate(GAUSSIAN, DIFFUSION, X, X, weight=one[None], level=0).shape == (1, *X.shape)
