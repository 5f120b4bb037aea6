"""Editing of Gaussian data on every process, in closed form: the flow of a Gaussian multiplies by a number."""

import numpy as np
import pytest
import torch

from fastdiff.process import noise
from fastdiff.process.noise import Stream
from fastdiff.sampling import editing
from support.gaussian_networks import gaussian_network
from support.textbook_processes import PROCESSES, own_levels

NAMES = ("edm", "exploding", "flow", "shifted", "vdm")
VARIANCE = 0.25
# 300 steps of order 2, and the end at the cleanest timestep: relative.
OF_STEPS = 2e-3
generator = torch.Generator().manual_seed(0)
X = 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)
Y = 0.5 * torch.randn(4, 6, generator=generator, dtype=torch.float64)


def told(process):
    """A process, its exact network, and the alpha and sigma of the variance-preserving state of a timestep."""
    diffusion = PROCESSES[process]
    a, s = own_levels(diffusion, diffusion.schedule.timesteps)
    n = np.hypot(a, s)
    return gaussian_network(diffusion, VARIANCE), diffusion, a / n, s / n


def gain(alpha, sigma):
    """Of the flow from the image to that level: the quotient of the standard deviations."""
    return np.sqrt((alpha**2 * VARIANCE + sigma**2) / VARIANCE)


def last_of(process):
    """A flow ends without signal, and encoding at the timestep before."""
    return -2 if process in ("flow", "shifted") else -1


@pytest.mark.parametrize("options", [{}, {"exact": True}], ids=["order 2", "exact"])
@pytest.mark.parametrize("process", NAMES)
def test_encoding_multiplies_by_the_flows_gain(process, options):
    model, diffusion, alpha, sigma = told(process)
    last = last_of(process)
    expected = gain(alpha[last], sigma[last]) * X
    # The exactly invertible pair is of order 1 in its steps.
    tolerance = 0.02 if options else OF_STEPS
    encoded = editing.encode(model, diffusion, X, steps=300, **options)
    torch.testing.assert_close(encoded, expected, rtol=tolerance, atol=tolerance)
    back = editing.decode(model, diffusion, expected, steps=300, **options)
    torch.testing.assert_close(back, X, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("process", NAMES)
def test_varying_noises_and_follows_the_flow_back(process):
    model, diffusion, alpha, sigma = told(process)
    for strength in (0.3, 0.8):
        at = round(strength * diffusion.num_timesteps) - 1
        # The same noise with another image: what differs is the image's share.
        found, other = (
            editing.vary(model, diffusion, x, strength=strength, steps=200, sampler="dpm_solver", seed=4)
            for x in (X, Y)
        )
        share = alpha[at] / gain(alpha[at], sigma[at])
        torch.testing.assert_close(found - other, share * (X - Y), rtol=0, atol=3 * OF_STEPS)
        z = noise.normals(4, np.arange(4), 6, Stream.SAMPLING, np.zeros(4, dtype=np.int64))
        expected = (alpha[at] * X.numpy() + sigma[at] * z) / gain(alpha[at], sigma[at])
        np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=3 * OF_STEPS)


@pytest.mark.parametrize("process", NAMES)
def test_interpolation_is_that_of_the_images(process):
    """Numbers that multiply whole images leave arcs between them as they are."""
    model, diffusion, _, _ = told(process)
    weights = (0.25, 0.5)
    found = editing.interpolate(model, diffusion, X, Y, weight=weights, steps=200)
    for k, weight in enumerate(weights):
        expected = editing.slerp(X, Y, weight)
        torch.testing.assert_close(found[k], expected, rtol=0, atol=3 * OF_STEPS)


def test_inpainting_goes_to_the_conditional():
    """Two pixels of correlation 0.8, one of them known: the other is N(0.8 known, 0.36 of the variance).

    RePaint is so in the limit of many repeats; without one, a known pixel at a level says little of the other. Other
    processes are this one's twins (test_processes.py).
    """
    _, diffusion, _, _ = told("edm")
    count, covariance = 800, VARIANCE * np.array([[1.0, 0.8], [0.8, 1.0]])
    spread, axes = np.linalg.eigh(covariance)
    networks = [gaussian_network(diffusion, float(v)) for v in spread]
    turn = torch.from_numpy(axes)

    def model(x, t):
        along = x @ turn.to(x.dtype)
        return torch.cat([network(along[:, [k]], t) for k, network in enumerate(networks)], dim=1) @ turn.T.to(x.dtype)

    x = torch.zeros(count, 2, dtype=torch.float64)
    x[:, 0] = torch.linspace(-0.9, 0.9, count, dtype=torch.float64)
    known = torch.tensor([True, False])
    slopes = []
    for repeats in (1, 8):
        found = editing.inpaint(model, diffusion, x, known, steps=30, jump_length=5, jump_repeats=repeats, seed=2)
        assert torch.equal(found[:, 0], x[:, 0])
        slopes.append(float((found[:, 0] * found[:, 1]).mean() / x[:, 0].square().mean()))
    rest = float((found[:, 1] - slopes[1] * x[:, 0]).var())
    # 800 draws tell the slope to 0.02, and the variance to 0.005.
    assert slopes[0] < slopes[1] - 0.05
    assert slopes[1] == pytest.approx(0.8, abs=0.2)
    assert rest == pytest.approx(0.36 * VARIANCE, abs=0.03)
