"""Drop-in schedulers against diffusers live: whole runs with one toy network and the same generators."""

import copy
import inspect
import json
import pickle

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import NAMES, QUIET, WITHOUT_X0, assert_same, pair, run, toy, with_timesteps  # noqa: E402

pytestmark = QUIET
SPACINGS = ["leading", "trailing", "linspace"]
STEP_BY_STRIDE = ("DDIMScheduler", "DDIMInverseScheduler", "PNDMScheduler")


def grid():
    for name in NAMES:
        keys = inspect.signature(getattr(diffusers, name).__init__).parameters
        if name == "RePaintScheduler":
            continue
        for spacing in SPACINGS if "timestep_spacing" in keys else [None]:
            if name == "DDIMInverseScheduler" and spacing == "linspace":
                continue
            for prediction in ("epsilon", "sample", "v_prediction"):
                if prediction == "sample" and name in (*WITHOUT_X0, "PNDMScheduler"):
                    continue
                for steps in (5, 12):
                    yield name, spacing, prediction, steps


@pytest.mark.parametrize(("name", "spacing", "prediction", "steps"), list(grid()))
@pytest.mark.filterwarnings("ignore:PNDMScheduler runs diffusers' own step:RuntimeWarning")
def test_scheduler_gives_the_images_of_diffusers(name, spacing, prediction, steps):
    """Where their steps of T // n leave the list of timesteps, a fault, with compat."""
    options = {"prediction_type": prediction} | ({"timestep_spacing": spacing} if spacing else {})
    if name == "PNDMScheduler":
        options["skip_prk_steps"] = steps != 12
    if name == "PNDMScheduler" and (1000 // steps) % 2 and steps == 12:
        # The middle of their Runge-Kutta steps is one timestep beside the one that the network is given.
        options["compat"] = "diffusers"
    leaves = name in STEP_BY_STRIDE and (spacing == "linspace" or (spacing == "trailing" and 1000 % steps))
    if leaves:
        options["compat"] = "diffusers"
    theirs, mine = with_timesteps(pair(name, **options), steps)
    if name == "DDIMInverseScheduler" and prediction == "sample":
        # They divide by the noise of a clean image at the first step: the others are compared one by one.
        x, m = torch.randn(2, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        assert mine.step(m, mine.timesteps[0], x).prev_sample.isfinite().all()
        for t in theirs.timesteps[1:]:
            assert_same([theirs.step(m, t, x).prev_sample], [mine.step(m, t, x).prev_sample])
        return
    expected = run(theirs)
    assert_same(expected, run(mine))


CONFIGURATIONS = {
    "ddim eta": ("DDIMScheduler", {}, {"eta": 0.7}),
    "ddim clipped eps": ("DDIMScheduler", {}, {"eta": 1.0, "use_clipped_model_output": True}),
    "ddim clip range": ("DDIMScheduler", {"clip_sample_range": 2.5}, {}),
    "ddim final alpha": ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}, {"eta": 0.5}),
    "ddim zero snr": (
        "DDIMScheduler",
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {},
    ),
    "ddpm cosine": ("DDPMScheduler", {"beta_schedule": "squaredcos_cap_v2"}, {}),
    "ddpm sigmoid": ("DDPMScheduler", {"beta_schedule": "sigmoid"}, {}),
    "ddpm trained": ("DDPMScheduler", {"trained_betas": np.linspace(1e-3, 0.03, 400), "num_train_timesteps": 400}, {}),
    "pndm scaled": ("PNDMScheduler", {"beta_schedule": "scaled_linear", "steps_offset": 1, "skip_prk_steps": True}, {}),
    "pndm to one": ("PNDMScheduler", {"set_alpha_to_one": True, "num_train_timesteps": 792}, {}),
    "dpm order 3": ("DPMSolverMultistepScheduler", {"solver_order": 3}, {}),
    "dpm order 1": ("DPMSolverMultistepScheduler", {"solver_order": 1}, {}),
    "dpm heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, {}),
    "dpm sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
    "dpm sde 3": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}, {}),
    "dpm sigma_min": ("DPMSolverMultistepScheduler", {"final_sigmas_type": "sigma_min", "euler_at_final": True}, {}),
    "dpm noise": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {}),
    "dpm full order": ("DPMSolverMultistepScheduler", {"lower_order_final": False, "solver_order": 3}, {}),
    "dpm karras": ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "dpm exponential": ("DPMSolverMultistepScheduler", {"use_exponential_sigmas": True}, {}),
    "dpm beta": ("DPMSolverMultistepScheduler", {"use_beta_sigmas": True}, {}),
    "dpm lu": ("DPMSolverMultistepScheduler", {"use_lu_lambdas": True}, {}),
    "dpm lambda": (
        "DPMSolverMultistepScheduler", {"beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {},
    ),
    "single sigma_min": ("DPMSolverSinglestepScheduler", {"final_sigmas_type": "sigma_min"}, {}),
    "single heun": ("DPMSolverSinglestepScheduler", {"solver_type": "heun"}, {}),
    "single noise": (
        "DPMSolverSinglestepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}, {},
    ),
    "single karras": ("DPMSolverSinglestepScheduler", {"use_karras_sigmas": True}, {}),
    "unipc 3": ("UniPCMultistepScheduler", {"solver_order": 3}, {}),
    "unipc noise": ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}, {}),
    "unipc bh1": ("UniPCMultistepScheduler", {"solver_type": "bh1", "final_sigmas_type": "sigma_min"}, {}),
    "unipc partly": ("UniPCMultistepScheduler", {"disable_corrector": [0, 1]}, {}),
    "unipc karras": ("UniPCMultistepScheduler", {"use_karras_sigmas": True}, {}),
    "deis 3": ("DEISMultistepScheduler", {"solver_order": 3}, {}),
    "deis full order": ("DEISMultistepScheduler", {"lower_order_final": False}, {}),
    "euler karras": ("EulerDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "euler exponential": ("EulerDiscreteScheduler", {"use_exponential_sigmas": True}, {}),
    "euler sigma_min": ("EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min"}, {}),
    "euler leading to sigma_min": (
        "EulerDiscreteScheduler", {"final_sigmas_type": "sigma_min", "timestep_spacing": "leading"}, {},
    ),
    "euler churn": ("EulerDiscreteScheduler", {}, {"s_churn": 5.0}),
    "euler continuous": (
        "EulerDiscreteScheduler", {"timestep_type": "continuous", "prediction_type": "v_prediction"}, {},
    ),
    "heun karras": ("HeunDiscreteScheduler", {"use_karras_sigmas": True}, {}),
    "heun clipped": ("HeunDiscreteScheduler", {"clip_sample": True, "clip_sample_range": 1.5}, {}),
    "lms 2": ("LMSDiscreteScheduler", {}, {"order": 2}),
    "lms karras": ("LMSDiscreteScheduler", {"use_karras_sigmas": True}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURATIONS)
@pytest.mark.parametrize("steps", [11, 18])
def test_scheduler_takes_every_option(case, steps):
    name, options, call = CONFIGURATIONS[case]
    if case == "ddim zero snr":
        steps = 20
    theirs, mine = with_timesteps(pair(name, **options), steps)
    assert_same(run(theirs, **call), run(mine, **call))


UNSUPPORTED = {
    "thresholding": ("DDPMScheduler", {"thresholding": True, "sample_max_value": 1.5}),
    "flow": ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    "sde noise": (
        "DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver", "final_sigmas_type": "sigma_min"},
    ),
    "single sde": ("DPMSolverSinglestepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "single 3": ("DPMSolverSinglestepScheduler", {"solver_order": 3}),
    "pndm v": ("PNDMScheduler", {"prediction_type": "v_prediction"}),
}  # fmt: skip


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_scheduler_without_a_table_runs_their_step_and_says_so(case):
    from fastdiff.compat.diffusers._base import _warn_peer

    _warn_peer.cache_clear()
    name, options = UNSUPPORTED[case]
    theirs, mine = with_timesteps(pair(name, **options), 12)
    with pytest.warns(RuntimeWarning, match="no table covers"):
        seen = run(mine)
    assert_same(run(theirs), seen)


@pytest.mark.parametrize("name", NAMES)
def test_scheduler_is_a_subclass_with_the_same_signatures(name):
    theirs, mine = getattr(diffusers, name), getattr(ours, name)
    assert issubclass(mine, theirs)
    assert issubclass(mine, diffusers.SchedulerMixin)
    assert issubclass(mine, diffusers.ConfigMixin)
    for method in ("__init__", "step", "scale_model_input", "add_noise"):
        if not hasattr(theirs, method):
            continue
        expected = inspect.signature(getattr(theirs, method)).parameters
        got = inspect.signature(getattr(mine, method)).parameters
        if method == "scale_model_input":
            assert list(got)[:2] == list(expected)[:2]
            continue
        assert list(got) == list(expected), method
        assert [p.default for p in got.values()] == [p.default for p in expected.values()], method


@pytest.mark.parametrize("name", NAMES)
def test_scheduler_files_are_those_of_diffusers(name, tmp_path):
    theirs, mine = pair(name, num_train_timesteps=300)
    theirs.save_pretrained(tmp_path / "theirs")
    mine.save_pretrained(tmp_path / "mine")
    texts = [json.loads((tmp_path / part / "scheduler_config.json").read_text()) for part in ("theirs", "mine")]
    assert texts[0] == texts[1]
    back = getattr(ours, name).from_pretrained(tmp_path / "theirs")
    assert type(back) is getattr(ours, name)
    assert back.config.num_train_timesteps == len(back) == 300
    assert type(getattr(diffusers, name).from_pretrained(tmp_path / "mine")) is getattr(diffusers, name)
    for attribute in ("betas", "alphas", "alphas_cumprod"):
        assert torch.equal(getattr(theirs, attribute), getattr(mine, attribute))
    assert mine.order == theirs.order
    assert float(mine.init_noise_sigma) == float(theirs.init_noise_sigma)


def test_compat_is_kept_in_the_configuration(tmp_path):
    scheduler = ours.DDIMScheduler.from_config(diffusers.DDPMScheduler().config, compat="diffusers")
    assert scheduler.compat == scheduler.config.compat == "diffusers"
    scheduler.save_pretrained(tmp_path)
    assert ours.DDIMScheduler.from_pretrained(tmp_path).compat == "diffusers"
    assert ours.DDPMScheduler.from_config(scheduler.config).compat == "diffusers"
    assert "compat" not in ours.DDIMScheduler().config
    with pytest.raises(ValueError, match="compat must be None or 'diffusers', got 'openai'"):
        ours.DDIMScheduler(compat="openai")


@pytest.mark.parametrize("name", ["DDPMScheduler", "DPMSolverMultistepScheduler", "EulerAncestralDiscreteScheduler"])
def test_scheduler_takes_a_list_of_generators(name):
    options = {"algorithm_type": "sde-dpmsolver++"} if name.startswith("DPM") else {}
    theirs, mine = with_timesteps(pair(name, **options), 6)
    generators = [[torch.Generator().manual_seed(s) for s in (3, 4)] for _ in range(2)]
    assert_same(run(theirs, generator=generators[0]), run(mine, generator=generators[1]))
    assert torch.equal(generators[0][0].get_state(), generators[1][0].get_state())


@pytest.mark.parametrize("name", [n for n in NAMES if n != "RePaintScheduler"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scheduler_in_half_precision_is_no_worse_than_diffusers(name, dtype):
    """Against the same run in float64 on the same inputs: each step's error at most twice theirs plus a rounding."""
    theirs, mine = with_timesteps(pair(name), 12)
    exact = getattr(ours, name)()
    exact.set_timesteps(12)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype) * theirs.init_noise_sigma
    x = x.to(dtype)
    takes = "generator" in inspect.signature(theirs.step).parameters
    errors = np.zeros(2)
    results = []
    for scheduler, kind in ((theirs, dtype), (mine, dtype), (exact, torch.float64)):
        state = x.to(kind)
        generator = torch.Generator().manual_seed(1)
        # One step of each: the noise is drawn in the sample's type, so that float64 runs without it.
        t = scheduler.timesteps[0]
        m = toy(scheduler.scale_model_input(x, t).double(), t).to(dtype).to(kind)
        options = {"generator": generator} if takes else {}
        if name == "DPMSolverSDEScheduler":
            options = {"s_noise": 0.0}
        if takes and kind == torch.float64:
            noise = torch.randn(x.shape, generator=generator, dtype=_noise_type(name, dtype))
            if name == "DDPMScheduler" or name == "EulerAncestralDiscreteScheduler":
                options = {"generator": _Given(noise.double())}
            else:
                options = {}
        results.append(_step(scheduler, m, t, state, options).prev_sample.double())
    errors = [float((r - results[2]).abs().max()) for r in results[:2]]
    rounding = float(results[2].abs().max()) * (2**-8 if dtype == torch.bfloat16 else 2**-10)
    assert results[1].isfinite().all()
    assert errors[1] <= 2 * errors[0] + rounding


class _Given:
    """Stands for a generator whose next draw is known."""

    def __init__(self, noise):
        self.noise = noise


def _noise_type(name, dtype):
    return dtype if name in ("DDPMScheduler", "EulerAncestralDiscreteScheduler") else torch.float32


def _step(scheduler, m, t, state, options):
    given = options.get("generator")
    if isinstance(given, _Given):
        scheduler._noise = lambda *args: (given.noise, 0)
    return scheduler.step(m, t, state, **options)


@pytest.mark.parametrize(
    "name", [n for n in NAMES if n.startswith(("DPM", "Uni", "DEIS", "Euler", "Heun", "KDPM2", "LCM", "TCD"))]
)
def test_scheduler_starts_in_the_middle(name):
    """As image-to-image pipelines do: by set_begin_index, and by the first timestep that is given.

    Not LMS: theirs then takes the weights of order 4 with fewer values, whose sum is not the step.
    """
    for by_index in (True, False):
        schedulers = with_timesteps(pair(name), 12)
        first = 4 * schedulers[0].order
        for scheduler in schedulers:
            if by_index:
                scheduler.set_begin_index(first)
        theirs, mine = schedulers
        assert_same(run(theirs, first=first), run(mine, first=first))
        assert theirs.step_index == mine.step_index
        assert theirs.begin_index == mine.begin_index


def test_scheduler_without_a_generator_draws_fastdiffs_noise():
    """Fresh at each step, governed by torch's seed, and the same for a sample in every batch."""
    scheduler = ours.DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.zeros(4, 3, 16, 16)
    t = int(scheduler.timesteps[0])
    torch.manual_seed(0)
    first, second = scheduler.step(x, t, x).prev_sample, scheduler.step(x, t, x).prev_sample
    assert float((first - second).abs().max()) > 0.1
    torch.manual_seed(0)
    assert torch.equal(first, scheduler.step(x, t, x).prev_sample)
    scheduler.seed = 5
    whole = scheduler.step(x, t, x).prev_sample
    scheduler.sample_ids = torch.tensor([2, 3])
    assert torch.equal(whole[2:], scheduler.step(x[2:], t, x[2:]).prev_sample)
    variance = float(scheduler._get_variance(t))
    # The variance of 3,072 numbers has a standard error of 2.6 %; four of them.
    assert float(whole.var()) == pytest.approx(variance, rel=0.1)


def test_scheduler_keeps_gradients():
    """A fused step has none, so diffusers' own runs where they are wanted."""
    scheduler = ours.DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(10)
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    scheduler.step(0.5 * x, int(scheduler.timesteps[0]), x).prev_sample.sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().min()) > 0


def test_step_gives_tuples():
    for name in NAMES:
        if name == "RePaintScheduler":
            continue
        theirs, mine = with_timesteps(pair(name), 8)
        x = torch.randn(1, 3, 4, 4)
        for scheduler in (theirs, mine):
            scheduler.scale_model_input(x, scheduler.timesteps[0])
        results = [s.step(0.1 * x, s.timesteps[0], x, return_dict=False) for s in (theirs, mine)]
        assert isinstance(results[1], tuple)
        assert len(results[0]) == len(results[1])


def tanh_run(scheduler, steps=10, change=None):
    """The states of a run whose scheduler was changed by hand after set_timesteps."""
    scheduler.set_timesteps(steps)
    if change is not None:
        change(scheduler)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
    options = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(1)
    states = []
    for t in scheduler.timesteps:
        x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x, **options).prev_sample
        states.append(x)
    return states


def other_sigmas(scheduler):
    scheduler.sigmas = scheduler.sigmas * 0.5


def sigmas_in_place(scheduler):
    scheduler.sigmas *= 0.5


BY_SIGMA = [name for name in NAMES if not name.startswith(("DD", "PNDM", "RePaint", "LCM", "TCD"))]
IN_ORDER = [name for name in NAMES if name != "RePaintScheduler"]


@pytest.mark.parametrize("name", BY_SIGMA)
@pytest.mark.parametrize("change", [other_sigmas, sigmas_in_place])
def test_sigmas_set_by_hand_hold_for_that_run_alone(name, change):
    theirs, mine = pair(name)
    plain = tanh_run(getattr(ours, name)())
    assert_same(tanh_run(theirs), tanh_run(mine))
    assert_same(tanh_run(theirs, change=change), tanh_run(mine, change=change))
    again = tanh_run(mine)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler", "LMSDiscreteScheduler"])
def test_sigmas_set_by_hand_within_a_run_keep_its_history(name):
    theirs, mine = with_timesteps(pair(name), 10)
    for states in (results := ([], [])):
        scheduler = theirs if states is results[0] else mine
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
        for i, t in enumerate(scheduler.timesteps):
            if i == 4:
                scheduler.sigmas[5:] *= 0.9
            x = scheduler.step(torch.tanh(scheduler.scale_model_input(x, t)), t, x).prev_sample
            states.append(x)
    assert_same(*results)


@pytest.mark.parametrize("name", ["DDPMScheduler", "DDIMScheduler", "PNDMScheduler"])
def test_timesteps_set_by_hand_hold_for_that_run_alone(name):
    def shorten(scheduler):
        scheduler.timesteps = scheduler.timesteps[3:]

    mine = getattr(ours, name)()
    tanh_run(mine, change=shorten)
    plain, again = tanh_run(getattr(ours, name)()), tanh_run(mine)
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))


@pytest.mark.parametrize("compat", [None, "diffusers"])
@pytest.mark.parametrize("name", [name for name in IN_ORDER if not name.startswith("PNDM")])
def test_alphas_cumprod_set_by_hand_is_used(name, compat):
    theirs, mine = pair(name, compat=compat)
    tanh_run(mine)
    for scheduler in (theirs, mine):
        scheduler.alphas_cumprod = scheduler.alphas_cumprod**1.3
    assert_same(tanh_run(theirs), tanh_run(mine))
    # In place, without a word, and back.
    for scheduler in (theirs, mine):
        scheduler.alphas_cumprod **= 1 / 1.3
    assert_same(tanh_run(theirs), tanh_run(mine))


@pytest.mark.parametrize("types", [("float32", "float16"), ("float16", "float32"), ("float32", "bfloat16"),
                                   ("bfloat16", "float16"), ("float16", "float16")], ids=str)  # fmt: skip
@pytest.mark.parametrize(
    ("name", "prediction"),
    [
        (name, prediction)
        for name in IN_ORDER
        for prediction in ("epsilon", "sample", "v_prediction")
        # PNDM runs their own step; the others have none for this, or divide by 0 in it.
        if not (name == "PNDMScheduler" and prediction != "epsilon")
        and not (prediction == "sample" and name in (*WITHOUT_X0, "DDIMInverseScheduler"))
    ],
)
def test_state_and_output_of_two_types_give_the_type_of_diffusers(name, prediction, types):
    """And their values, to the rounding of the narrower one: theirs rounds the products of its coefficients as well."""
    state_type, output_type = (getattr(torch, kind) for kind in types)
    options = {"timestep_spacing": "leading"} if "timestep_spacing" in getattr(diffusers, name)().config else {}
    theirs, mine = with_timesteps(pair(name, prediction_type=prediction, **options), 8)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(theirs.init_noise_sigma)
    x = x.to(state_type)
    seen = []
    for scheduler in (theirs, mine):
        generator = torch.Generator().manual_seed(1)
        options = {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}
        state, results = x, []
        for t in scheduler.timesteps:
            m = toy(scheduler.scale_model_input(state, t).float(), t).to(output_type)
            result = scheduler.step(m, t, state, **options)
            results.append(result)
            state = result.prev_sample.to(state_type)
        seen.append(results)
    for a, b in zip(*seen, strict=True):
        assert {key: value.dtype for key, value in a.items()} == {key: value.dtype for key, value in b.items()}
        assert all(value.isfinite().all() for value in b.values())
    first = [results[0].prev_sample.double() for results in seen]
    assert float((first[0] - first[1]).abs().max() / first[0].abs().max().clamp(min=1)) < 0.02


@pytest.mark.parametrize("name", IN_ORDER)
def test_state_may_change_layout_and_type_within_a_run(name):
    """A mask from NumPy makes it channels last; the values are those of diffusers."""
    theirs, mine = with_timesteps(pair(name), 10)
    results = []
    for scheduler in (theirs, mine):
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(scheduler.init_noise_sigma)
        options = {}
        if "generator" in inspect.signature(scheduler.step).parameters:
            options["generator"] = torch.Generator().manual_seed(1)
        states = []
        for i, t in enumerate(scheduler.timesteps):
            m = torch.tanh(scheduler.scale_model_input(x, t))
            x = scheduler.step(m, t, x, **options).prev_sample
            states.append(x)
            x = x.contiguous(memory_format=torch.channels_last) if i % 3 == 0 else x
            x = x.double() if i == 4 else x
        results.append(states)
    assert_same(*results)


def test_zero_snr_is_refused_nowhere_that_diffusers_steps():
    """At the last timestep, without signal, their own step runs: the image that it predicts is one of its bounds."""
    for steps in (None, 10):
        theirs, mine = pair("DDPMScheduler", rescale_betas_zero_snr=True, timestep_spacing="trailing")
        x, m = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        for t in (0, 500, 999):
            if steps is not None:
                with_timesteps((theirs, mine), steps)
                t = min(theirs.timesteps.tolist(), key=lambda other: abs(other - t))
            outputs = [s.step(m, t, x, generator=torch.Generator().manual_seed(2)) for s in (theirs, mine)]
            assert_same(*([out.prev_sample, out.pred_original_sample] for out in outputs))


def test_unknown_variance_type_is_the_small_one():
    theirs, mine = pair("DDPMScheduler", variance_type="other")
    assert_same(run(with_timesteps((theirs, mine), 6)[0]), run(mine))


@pytest.mark.filterwarnings("ignore:DDIMScheduler runs diffusers' own step:RuntimeWarning")
def test_betas_above_1_run_their_step():
    theirs, mine = with_timesteps(pair("DDIMScheduler", beta_start=0.1, beta_end=2.0), 50)
    x, m = torch.randn(2, 1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert_same([theirs.step(m, 0, x).prev_sample], [mine.step(m, 0, x).prev_sample])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))], ids=["deepcopy", "pickle"])
# torchsde's path cannot be copied.
@pytest.mark.parametrize("name", [name for name in IN_ORDER if name != "DPMSolverSDEScheduler"])
def test_copied_scheduler_goes_on_by_itself(name, copied):
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(8)
    whole, half = tanh_run(scheduler), getattr(ours, name)()
    half.set_timesteps(8)
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(half.init_noise_sigma)
    whole = tanh_run(scheduler, 8)
    takes = "generator" in inspect.signature(half.step).parameters
    options = {"generator": torch.Generator().manual_seed(1)} if takes else {}
    for i, t in enumerate(half.timesteps):
        if i == 4:
            before, half = half, copied(half)
            assert type(half) is type(before)
            # What the first one still does is not seen.
            before.step(x, before.timesteps[4], x)
        x = half.step(torch.tanh(half.scale_model_input(x, t)), t, x, **options).prev_sample
        assert torch.equal(x, whole[i])


def test_subclass_of_a_drop_in_keeps_its_module():
    class Mine(ours.DDIMScheduler):
        pass

    assert Mine.__module__ == Mine().__module__ == __name__
