"""Editing, views and guidance on every Gaussian process: what the variance-preserving one of the same levels does."""

import pytest
import torch

import fastdiff as fd
from fastdiff.guidance import ClassifierGuidance
from fastdiff.sampling import editing
from fastdiff.sampling.langevin import langevin
from fastdiff.sampling.views import Views
from support.gaussian_networks import Mixture
from support.networks import small_unet
from support.textbook_processes import PROCESSES
from support.tolerances import FLOAT32_DEEP, FLOAT32_RUN

DATA = Mixture([[-0.6, 0.0, 0.3], [0.5, 0.5, -0.2], [0.2, -0.7, 0.1]], 0.03)
X = DATA.sample(6)
OWN = {name: PROCESSES[name] for name in ("edm", "exploding", "flow", "shifted", "vdm")}


def pair(process):
    """A process with its exact network, and the variance-preserving twin with its own."""
    diffusion = OWN[process]
    twin = fd.Diffusion(fd.NoiseSchedule.from_betas(diffusion.schedule.betas), "x0")
    return (DATA.network(diffusion), diffusion), (DATA.network(twin), twin)


EDITS = {
    "encode": lambda model, process: editing.encode(model, process, X, steps=10),
    "encode, order 1": lambda model, process: editing.encode(model, process, X, steps=10, order=1),
    "encode exactly": lambda model, process: editing.encode(model, process, X, steps=10, exact=True, level=0.8),
    "vary": lambda model, process: editing.vary(model, process, X, strength=0.5, steps=10),
    "interpolate": lambda model, process: editing.interpolate(model, process, X, X.flip(0), steps=10),
    "interpolate noised": lambda model, process: editing.interpolate(
        model, process, X, X.flip(0), level=0.5, steps=10, stochastic=True
    ),
    "inpaint": lambda model, process: editing.inpaint(
        model, process, X, torch.tensor([True, False, False]), steps=10, jump_length=3, jump_repeats=2
    ),
    "langevin": lambda model, process: langevin(
        model, process, timesteps=process.schedule.timesteps[[700, 400]].tolist(), shape=(6, 3), steps_per_level=3,
        x_init=X,
    ),
}  # fmt: skip


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("process", OWN)
def test_edits_are_those_of_the_twin(process, edit):
    ours, twin = pair(process)
    # Times are given as float32, and the levels that they tell are rounded with them.
    torch.testing.assert_close(EDITS[edit](*ours), EDITS[edit](*twin), rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)


@pytest.mark.parametrize("process", OWN)
def test_encoding_comes_back_by_default(process):
    model, diffusion = pair(process)[0]
    assert float(editing.round_trip_error(model, diffusion, X).max()) < 0.02


@pytest.mark.parametrize("process", OWN)
def test_views_are_those_of_the_twin(process):
    (model, diffusion), (other, twin) = pair(process)
    ours, theirs = Views(model, diffusion), Views(other, twin)
    for position in (3, 400, 900):
        t = float(diffusion.schedule.timesteps[position])
        for view in ("x0", "eps", "v", "score"):
            found, expected = getattr(ours, view)(X, t), getattr(theirs, view)(X, position)
            torch.testing.assert_close(found, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)
    torch.testing.assert_close(ours.denoise(X, 0.7), theirs.denoise(X, 0.7), rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score", "velocity", "F"])
@pytest.mark.parametrize("process", ["edm", "flow"])
def test_classifier_guidance_shifts_the_score_whatever_is_predicted(process, prediction):
    """The gradient that a classifier gives is that in the network's own input."""
    schedule = OWN[process].schedule.subset(range(900))
    diffusion = fd.Diffusion(schedule, prediction)
    n = diffusion.input_scale()
    gradient = torch.tensor([0.4, -0.2, 0.1], dtype=torch.float64)
    t = 500

    def cond_fn(x, times):
        # Of n x, for a gradient in x.
        return (gradient / n[t]).expand_as(x)

    model = DATA.network(diffusion)
    guided = ClassifierGuidance(model, cond_fn, diffusion, 1.5)
    time = float(schedule.timesteps[t])
    found = Views(guided, diffusion).score(X, time)
    expected = Views(model, diffusion).score(X, time) + 1.5 * gradient
    # The shift is kept as float32.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("process", OWN)
def test_a_networks_runners_agree_on_every_process(process):
    """The engine scales the state for the network as the eager loop does, at fractional and negative times too."""
    unet, diffusion = small_unet().eval(), OWN[process]
    for name in ("ddpm", "unipc", "edm"):
        table = fd.samplers.build(name, diffusion, 7)
        eager, native = (
            fd.sample(unet, table, shape=(2, 1, 8, 8), runner=runner, progress=False) for runner in ("eager", "native")
        )
        # Measured against the largest value.
        assert float((eager - native).abs().max() / eager.abs().max()) < FLOAT32_RUN
