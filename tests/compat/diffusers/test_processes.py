"""Drop-ins of flow matching and of EDM against diffusers live: whole runs with one toy network."""

import copy
import pickle

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import (  # noqa: E402
    QUIET,
    WITHOUT_BETAS,
    assert_same,
    pair,
    run,
    toy,
    with_timesteps,
)
from support.tolerances import FLOAT32  # noqa: E402

pytestmark = QUIET
CONFIGURATIONS = {
    "ipndm": ("IPNDMScheduler", {"compat": "diffusers"}),
    "ipndm of betas": ("IPNDMScheduler", {"trained_betas": [0.9, 0.7, 0.5, 0.2, 0.1, 0.02]}),
    "flow": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow shifted": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow stochastic": ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True}),
    "flow karras": ("FlowMatchEulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "flow inverted": ("FlowMatchEulerDiscreteScheduler", {"invert_sigmas": True}),
    "flow to the terminal": ("FlowMatchEulerDiscreteScheduler", {"shift_terminal": 0.1}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow heun shifted": ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
    "edm": ("EDMEulerScheduler", {}),
    "edm of v": ("EDMEulerScheduler", {"prediction_type": "v_prediction", "sigma_data": 1.0}),
    "edm exponential": ("EDMEulerScheduler", {"sigma_schedule": "exponential"}),
    "edm noisy end": ("EDMEulerScheduler", {"final_sigmas_type": "sigma_min"}),
    "edm dpm": ("EDMDPMSolverMultistepScheduler", {}),
    "edm dpm order 3": ("EDMDPMSolverMultistepScheduler", {"solver_order": 3}),
    "edm dpm heun": ("EDMDPMSolverMultistepScheduler", {"solver_type": "heun"}),
    "edm dpm sde": ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "edm dpm of v": ("EDMDPMSolverMultistepScheduler", {"prediction_type": "v_prediction"}),
    "edm dpm euler last": ("EDMDPMSolverMultistepScheduler", {"euler_at_final": True, "sigma_max": 20.0}),
}
# Theirs drops the first output.
PARITY = {"IPNDMScheduler": {"compat": "diffusers"}}


@pytest.mark.parametrize("steps", [1, 5, 20])
@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_scheduler_gives_the_images_of_diffusers(case, steps):
    name, options = CONFIGURATIONS[case]
    if case == "flow to the terminal" and steps == 1:
        pytest.skip("theirs stretches one level to nothing")
    if case == "edm dpm sde" and steps == 1:
        options = options | {"solver_order": 1}
    theirs, mine = with_timesteps(pair(name, **options), steps)
    assert_same(run(theirs), run(mine))
    # By rows of a table, and not by their own step.
    assert mine._run.next == len(mine._run.table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", WITHOUT_BETAS)
def test_types_are_those_of_diffusers(name, dtype):
    theirs, mine = with_timesteps(pair(name, **PARITY.get(name, {})), 5)
    # Rows are computed in float32 and rounded once, theirs after each operation.
    tolerance = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float64: 1e-4}[dtype]
    assert_same(run(theirs, dtype=dtype), run(mine, dtype=dtype), tolerance)


@pytest.mark.parametrize("name", WITHOUT_BETAS)
def test_a_run_begins_in_the_middle_and_again(name):
    theirs, mine = with_timesteps(pair(name, **PARITY.get(name, {})), 10)
    first = 3 if name == "FlowMatchHeunDiscreteScheduler" else 4
    for scheduler in (theirs, mine):
        scheduler.set_begin_index(first if first % 2 == 0 else first + 1)
    start = first if first % 2 == 0 else first + 1
    assert_same(run(theirs, first=start), run(mine, first=start))
    again = with_timesteps((theirs, mine), 6)
    assert_same(run(again[0]), run(again[1]))


@pytest.mark.parametrize("name", WITHOUT_BETAS)
def test_files_and_copies_are_of_both_kinds(name, tmp_path):
    mine = getattr(ours, name)()
    mine.save_pretrained(tmp_path)
    theirs = getattr(diffusers, name).from_pretrained(tmp_path)
    assert theirs.config.num_train_timesteps == mine.config.num_train_timesteps
    again = getattr(ours, name).from_config(theirs.config, **PARITY.get(name, {}))
    for scheduler in (again, copy.deepcopy(again), pickle.loads(pickle.dumps(again))):
        with_timesteps((theirs, scheduler), 4)
        assert_same(run(theirs), run(scheduler))


@pytest.mark.filterwarnings("ignore:.*runs diffusers' own step:RuntimeWarning")
def test_what_no_row_covers_is_their_own_step():
    for name, options in (
        ("EDMEulerScheduler", {"s_churn": 5.0}),
        ("FlowMatchHeunDiscreteScheduler", {"s_churn": 5.0}),
    ):
        theirs, mine = with_timesteps(pair(name), 6)
        assert_same(run(theirs, **options), run(mine, **options))
    theirs, mine = with_timesteps(pair("EDMDPMSolverMultistepScheduler", thresholding=True), 6)
    assert_same(run(theirs), run(mine))
    for name in ("FlowMatchEulerDiscreteScheduler", "EDMEulerScheduler"):
        mine = getattr(ours, name)()
        mine.set_timesteps(4)
        x = torch.zeros(1, 1, 2, 2)
        with pytest.raises(ValueError, match="integer"):
            mine.step(x, 0, x)


def test_a_flow_of_tokens_with_times_of_their_own_is_their_own_step():
    theirs, mine = with_timesteps(pair("FlowMatchEulerDiscreteScheduler"), 4)
    x = torch.randn(2, 6, 3, generator=torch.Generator().manual_seed(0))
    times = torch.full((2, 6), 700.0)
    results = [
        scheduler.step(toy(x, 0), scheduler.timesteps[0], x, per_token_timesteps=times).prev_sample
        for scheduler in (theirs, mine)
    ]
    assert torch.equal(*results)
    assert_same(run(theirs, shape=(2, 6, 3), first=1), run(mine, shape=(2, 6, 3), first=1))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_ipndm_uses_the_first_output(steps):
    """A network of v that knows the image, whatever the noise: every run ends at it, where theirs ends elsewhere."""
    image = torch.linspace(-1, 1, 48).reshape(1, 3, 4, 4)
    results = []
    for scheduler in with_timesteps(pair("IPNDMScheduler"), steps):
        x = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
        for alpha, sigma, t in zip(
            torch.cos(scheduler.timesteps.double() * torch.pi / 2),
            torch.sin(scheduler.timesteps.double() * torch.pi / 2),
            scheduler.timesteps,
            strict=True,
        ):
            # v = alpha eps - sigma x_0 with x = alpha x_0 + sigma eps.
            v = (alpha * x.double() - image) / sigma
            x = scheduler.step(v.float(), t, x).prev_sample
        results.append(float((x - image).abs().max()))
    assert results[1] < 16 * FLOAT32
    assert results[0] > 0.1
