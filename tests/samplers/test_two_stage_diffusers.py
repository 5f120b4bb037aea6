"""Euler, Heun, DPM2 and EDM against diffusers, live."""

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.samplers.two_stage import dpm2, dpm2_ancestral, euler, euler_ancestral, heun
from support.table_runs import close, execute, toy_model
from support.tolerances import FLOAT64, PEER_RUN

# diffusers gives torch tensors to NumPy in ways that NumPy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")

SCHEDULES = {"linear": NoiseSchedule.linear(1000), "cosine": NoiseSchedule.cosine(1000)}
PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}
# diffusers computes its levels and states in float32: x / alpha reaches 157, where a rounding is 1e-5.
DIFFUSERS = 1e-4


def recorded(model):
    """The model, and the list of the inputs that it is given."""
    seen = []

    def call(x, t):
        seen.append(x.detach().double().clone())
        return model(x, t)

    return call, seen


def timeless(x, t):
    """A network that does not see t, where a peer gives it another t for the same level."""
    return toy_model(x, torch.zeros(x.shape[0]))


def same_trajectory(scheduler, table, model=toy_model):
    """Their state is x / alpha; the network is given x by both, so its inputs are the trajectory."""
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ours, our_inputs = recorded(model)
    theirs, their_inputs = recorded(model)
    generator, draws = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    y = (x / table.alphas[0]).float()
    noise = torch.zeros(len(table), *x.shape)
    for row, t in enumerate(scheduler.timesteps):
        m = theirs(scheduler.scale_model_input(y, t), t.expand(2)).float()
        before = generator.get_state()
        takes_noise = "Ancestral" in type(scheduler).__name__
        y = scheduler.step(m, t, y, **({"generator": generator} if takes_noise else {})).prev_sample
        if not torch.equal(before, generator.get_state()):
            noise[row] = torch.randn(x.shape, generator=draws)
    final = execute(table, ours, x, noise)
    assert len(our_inputs) == len(their_inputs) == len(table)
    for row in range(len(table)):
        close(our_inputs[row], their_inputs[row], DIFFUSERS)
    close(final, table.alphas[-1] * y.double(), DIFFUSERS)


def scheduler_of(name, steps, **options):
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    scheduler = getattr(diffusers, name)(1000, beta_start=1e-4, beta_end=0.02, **options)
    # A fault of theirs: in float32 their sqrt(1 - abar) of t = 0 is off by 3e-4. With the exact products they agree.
    scheduler.alphas_cumprod = torch.from_numpy(SCHEDULES["linear"].alphas_cumprod.copy())
    scheduler.set_timesteps(steps)
    return scheduler


# Name, builder, the predictions that it takes. 10 steps make whole times in all three spacings.
PEERS = {
    "EulerDiscreteScheduler": (euler, ["epsilon", "sample", "v_prediction"]),
    "EulerAncestralDiscreteScheduler": (euler_ancestral, ["epsilon", "v_prediction"]),
    "HeunDiscreteScheduler": (heun, ["epsilon", "sample", "v_prediction"]),
    "KDPM2DiscreteScheduler": (dpm2, ["epsilon", "v_prediction"]),
    "KDPM2AncestralDiscreteScheduler": (dpm2_ancestral, ["epsilon", "v_prediction"]),
}
CASES = [(name, p) for name, (_, predictions) in PEERS.items() for p in predictions]


@pytest.mark.parametrize(("name", "prediction"), CASES)
@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_two_stage_equals_diffusers(name, prediction, spacing):
    builder, _ = PEERS[name]
    scheduler = scheduler_of(name, 10, prediction_type=prediction, timestep_spacing=spacing)
    times = scheduler.timesteps.double().numpy()
    diffusion = Diffusion(SCHEDULES["linear"], PREDICTIONS[prediction])
    levels = sorted({t for t in times if t == round(t)}, reverse=True)
    assert len(levels) == 10
    # Their middle levels are those of `continuous`; the levels themselves are whole.
    table = builder(diffusion, timesteps=levels, continuous=builder is dpm2, clip=None)
    # diffusers interpolates log sigma between timesteps, we log alpha.
    np.testing.assert_allclose(table["t"], times, atol=0.05)
    same_trajectory(scheduler, table)


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
def test_two_stage_chooses_the_levels_of_diffusers(spacing):
    """The same table from the number of steps alone; theirs is of levels, ours of evaluations."""
    scheduler = scheduler_of("HeunDiscreteScheduler", 10, timestep_spacing=spacing)
    table = heun(Diffusion(SCHEDULES["linear"]), 19, spacing=spacing, clip=None)
    np.testing.assert_array_equal(table["t"], scheduler.timesteps.numpy())
    same_trajectory(scheduler, table)


def test_heun_equals_diffusers_clipped():
    scheduler = scheduler_of("HeunDiscreteScheduler", 12, timestep_spacing="leading", clip_sample=True)
    same_trajectory(scheduler, heun(Diffusion(SCHEDULES["linear"]), 23, spacing="leading", clip=1.0))


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_euler_equals_diffusers_on_noise_levels(prediction, spacing, final):
    """Levels agree; the times between timesteps differ by a little, since they interpolate log sigma / alpha."""
    scheduler = scheduler_of("EulerDiscreteScheduler", 12, prediction_type=prediction, final_sigmas_type=final,
                             **{f"use_{spacing}_sigmas": True})  # fmt: skip
    diffusion = Diffusion(SCHEDULES["linear"], PREDICTIONS[prediction])
    if final == "zero":
        table = euler(diffusion, 12, spacing=spacing, continuous=True, clip=None)
    else:
        # Theirs evaluates at sigma_min and then steps to it, which does nothing: 11 steps and an idle one.
        table = euler(diffusion, 11, spacing=spacing, continuous=True, clip=None, final="sigma_min")
        scheduler.timesteps = scheduler.timesteps[:-1]
    rho = np.asarray(table.sigmas) / np.asarray(table.alphas)
    np.testing.assert_allclose(rho, scheduler.sigmas.numpy()[: rho.size], rtol=PEER_RUN)
    # diffusers interpolates log sigma between timesteps, we log alpha.
    np.testing.assert_allclose(table["t"], scheduler.timesteps.numpy(), atol=0.05)
    same_trajectory(scheduler, table, timeless)


@pytest.mark.parametrize("name", ["HeunDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler"])
@pytest.mark.parametrize("spacing", ["karras", "exponential"])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_two_stage_equals_diffusers_on_noise_levels(name, spacing, prediction):
    """In x. In t the KDPM2 pair has a fault with Karras levels: it rounds the times and leaves the levels between
    timesteps, so that the network is told up to half a timestep too much or too little. Ours agree with the levels."""
    builder, _ = PEERS[name]
    scheduler = scheduler_of(name, 10, prediction_type=prediction, **{f"use_{spacing}_sigmas": True})
    diffusion = Diffusion(SCHEDULES["linear"], PREDICTIONS[prediction])
    table = builder(diffusion, 19, spacing=spacing, continuous=True, clip=None)
    off = np.abs(table["t"] - scheduler.timesteps.numpy())
    if spacing == "karras" and "KDPM2" in name:
        assert 0.2 < off.max() <= 0.55
        log_abar = np.interp(table["t"], np.arange(1000), SCHEDULES["linear"].log_alphas_cumprod)
        np.testing.assert_allclose(np.log(table.alphas[:-1]), 0.5 * log_abar, atol=FLOAT64)
    else:
        assert off.max() < 0.1
    same_trajectory(scheduler, table, timeless)


def test_euler_equals_edm_euler_in_diffusers():
    """Their EDM preconditioning with sigma_data = 1 is v prediction. Their time is log(sigma) / 4, for EDM networks."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    diffusion = Diffusion(SCHEDULES["linear"], "v")
    table = euler(diffusion, 12, spacing="karras", continuous=True, clip=None)
    rho = np.asarray(table.sigmas) / np.asarray(table.alphas)
    scheduler = diffusers.EDMEulerScheduler(
        sigma_min=float(rho[-2]), sigma_max=float(rho[0]), sigma_data=1.0, prediction_type="v_prediction"
    )
    scheduler.set_timesteps(12)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), rho, rtol=PEER_RUN)
    same_trajectory(scheduler, table, timeless)
