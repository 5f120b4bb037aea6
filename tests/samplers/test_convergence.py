"""The public measurement of a sampler's order."""

import numpy as np
import pytest

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule, samplers
from fastdiff.samplers import convergence_order
from support.tolerances import ORDER


@pytest.mark.parametrize(
    ("name", "options", "theory"),
    [
        ("ddim", {}, 1),
        ("euler", {}, 1),
        ("dpmpp", {}, 2),
        ("heun", {}, 2),
        ("dpm2", {}, 2),
        ("dpm_solver_singlestep", {"order": 3}, 3),
        ("dpmpp", {"order": 3}, 3),
        ("unipc", {"lower_order_final": False}, 3),
        ("deis", {}, 3),
    ],
    ids=lambda value: str(value),
)
def test_convergence_order_is_that_of_theory(name, options, theory):
    assert abs(convergence_order(name, **options) - theory) < ORDER


@pytest.mark.parametrize("prediction", ["v", "x0", "score"])
def test_convergence_order_does_not_depend_on_what_is_predicted(prediction):
    diffusion = Diffusion(
        NoiseSchedule.from_betas(NoiseSchedule.cosine(1000).subset(range(150, 1000)).betas), prediction
    )
    assert abs(convergence_order(samplers.dpmpp, diffusion) - 2) < ORDER


def test_convergence_order_takes_a_function_of_ones_own():
    def mine(diffusion, steps):
        return samplers.dpmpp(
            diffusion, steps, clip=None, spacing="logsnr", continuous=True, final="sigma_min", order=1
        )

    assert abs(convergence_order(mine, Diffusion(NoiseSchedule.linear(1000))) - 1) < ORDER


def test_convergence_order_finds_what_rounding_to_timesteps_takes():
    """Second order needs levels that are spaced smoothly: on 200 whole timesteps it is lost."""
    rounded = convergence_order("dpmpp", Diffusion(NoiseSchedule.linear(200)), steps=(30, 50, 80), continuous=False)
    assert abs(rounded - 2) > 2 * ORDER


@pytest.mark.parametrize(
    ("build", "options", "message"),
    [
        ("ddpm", {}, "draws noise"),
        ("ddim_encode", {"steps": (8, 8)}, "two different"),
        (lambda diffusion, steps: CoefficientTable({"t": np.zeros(steps)}, "mine"), {}, "does not say which levels"),
        (lambda diffusion, steps: samplers.ddim(diffusion.respace(str(steps))), {"steps": (10, 20)}, None),
        ("dimm", {}, "did you mean"),
        ("dpmpp", {"steps": 4}, "two different"),
    ],
)
def test_convergence_order_says_what_it_cannot_measure(build, options, message):
    if message is None:
        assert convergence_order(build, **options) > 0
        return
    with pytest.raises(ValueError, match=message):
        convergence_order(build, **options)


def test_convergence_order_refuses_a_start_without_signal():
    diffusion = Diffusion(NoiseSchedule.cosine(1000, max_beta=1.0), "v")
    with pytest.raises(ValueError, match="without signal"):
        convergence_order("ddim", diffusion)
