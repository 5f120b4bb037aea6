"""Every option of every scheduler, in random combinations and step by step, with diffusers' values.

What diffusers refuses is refused as there.
"""

import inspect
import random
from functools import partial

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402
from support.scheduler_runs import NAMES, QUIET, SAME_IMAGES, toy  # noqa: E402
from support.tolerances import FLOAT32_ROUNDING  # noqa: E402

pytestmark = [*QUIET, pytest.mark.filterwarnings("ignore:.*runs diffusers' own step:RuntimeWarning")]

# A value that stands there more often is drawn more often.
VALUES = {
    "num_train_timesteps": [1000, 1000, 250, 100, 37],
    "beta_start": [1e-4, 8.5e-4, 1e-3],
    "beta_end": [0.02, 0.012, 0.05],
    "beta_schedule": ["linear", "linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "exp"],
    "trained_betas": [None, None, None, [0.001, 0.002, 0.004, 0.008, 0.016, 0.032]],
    "variance_type": ["fixed_small", "fixed_small_log", "fixed_large", "learned", "learned_range", None],
    "clip_sample": [True, False],
    "clip_sample_range": [1.0, 2.5, 0.7],
    "prediction_type": ["epsilon", "sample", "v_prediction"],
    "thresholding": [False, False, False, True],
    "dynamic_thresholding_ratio": [0.995, 0.9],
    "sample_max_value": [1.0, 2.0],
    "timestep_spacing": ["linspace", "leading", "trailing"],
    "steps_offset": [0, 0, 1],
    "rescale_betas_zero_snr": [False, False, True],
    "set_alpha_to_one": [True, False],
    "skip_prk_steps": [True, False],
    "interpolation_type": ["linear", "linear", "log_linear"],
    "use_karras_sigmas": [False, False, False, False, True],
    "use_exponential_sigmas": [False, False, False, False, True],
    "use_beta_sigmas": [False, False, False, False, True],
    "use_lu_lambdas": [False, False, False, False, True],
    "use_flow_sigmas": [False] * 9 + [True],
    "flow_shift": [1.0, 3.0],
    "sigma_min": [None, None, None, 0.03],
    "sigma_max": [None, None, None, 20.0],
    "timestep_type": ["discrete", "discrete", "continuous"],
    "final_sigmas_type": ["zero", "sigma_min"],
    "solver_order": [1, 2, 3],
    "algorithm_type": ["dpmsolver", "dpmsolver++", "dpmsolver++", "sde-dpmsolver", "sde-dpmsolver++"],
    "solver_type": ["midpoint", "heun", "bh1", "bh2", "logrho"],
    "lower_order_final": [True, False],
    "euler_at_final": [True, False],
    "lambda_min_clipped": [-float("inf"), -5.1],
    "predict_x0": [True, False],
    "disable_corrector": [[], [0], [1, 2]],
}
# Values that others refuse at the constructor would leave little of a random draw.
SOLVER_TYPES = {"DPMS": ["midpoint", "heun"], "UniP": ["bh1", "bh2"], "DEIS": ["logrho"]}
ALGORITHMS = {"DEIS": ["deis"]}
COUNTED = [name for name in NAMES if name != "RePaintScheduler"]
SETS, PARTS = 25, 1
# Above it float32 states lose their image: their sums of two large numbers have no digits to compare.
LARGEST_LEVEL = 200.0


def options_of(name, draw):
    values = VALUES | {"solver_type": SOLVER_TYPES.get(name[:4], []), "beta_end": [0.02, 0.012]}
    values["algorithm_type"] = ALGORITHMS.get(name[:4], VALUES["algorithm_type"])
    keys = inspect.signature(getattr(diffusers, name).__init__).parameters
    options = {key: draw.choice(values[key]) for key in keys if values.get(key) and draw.random() < 0.4}
    if name.startswith("DDPM"):
        if options.get("variance_type", "") is None:
            del options["variance_type"]
    elif str(options.get("variance_type")).startswith("fixed"):
        del options["variance_type"]
    if options.get("use_flow_sigmas"):
        options["prediction_type"] = "flow_prediction"
    if options.get("trained_betas"):
        options["num_train_timesteps"] = len(options["trained_betas"])
    return options


def of_both(theirs, mine):
    """The results of both, or None where both refused; ours may go on where theirs does not."""
    results, errors = [], []
    for call in (theirs, mine):
        try:
            results.append(call())
        except Exception as error:
            errors.append(error)
    if not errors:
        return results
    assert len(errors) == 2 or _goes_on(errors[0]), errors
    # Of equal timesteps theirs begins at the second, so that both are past the end of the list at last.
    assert len({type(error) for error in errors}) == 1 or isinstance(errors[-1], IndexError), errors
    return None


def _goes_on(error):
    """Ancestral steps of networks that predict the image, single steps of v with a variance, UniPC's equal levels."""
    known = ("not implemented yet: sample", "must match the size", "matrix is singular")
    return any(text in str(error) for text in known)


def distance(a, b):
    """Largest difference over the largest value; theirs may be NaN."""
    assert a.dtype == b.dtype
    assert a.shape == b.shape
    finite = a.isfinite()
    assert b[finite].isfinite().all()
    if not finite.any():
        return 0.0
    return float((a - b)[finite].abs().max() / a[finite].abs().max().clamp(min=1))


def level_of(scheduler, i, t):
    if hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[i])
    abar = float(scheduler.alphas_cumprod[int(t)])
    return float("inf") if abar == 0 else ((1 - abar) / abar) ** 0.5


def plain(config):
    return {key: value for key, value in config.items() if key[:1] != "_" and key != "compat"}


def compare(name, draw):
    options, steps = options_of(name, draw), draw.choice([1, 2, 3, 5, 8, 10, 13, 20, 25])
    both = of_both(
        lambda: getattr(diffusers, name)(**options), lambda: getattr(ours, name)(**options, compat="diffusers")
    )
    if both is None:
        return False
    theirs, mine = both
    if of_both(lambda: theirs.set_timesteps(steps), lambda: mine.set_timesteps(steps)) is None:
        return False
    assert str(plain(theirs.config)) == str(plain(mine.config))
    assert torch.equal(theirs.timesteps, mine.timesteps)
    assert float(theirs.init_noise_sigma) == float(mine.init_noise_sigma)
    parameters = inspect.signature(theirs.step).parameters
    given = {"eta": draw.choice([0.0, 0.5, 1.0]), "use_clipped_model_output": draw.random() < 0.3}
    given = {key: value for key, value in given.items() if key in parameters}
    x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * float(theirs.init_noise_sigma)
    for i, t in enumerate(theirs.timesteps):
        seen, mine_seen = theirs.scale_model_input(x, t), mine.scale_model_input(x, t)
        assert distance(seen, mine_seen) < SAME_IMAGES
        m = toy(seen, t)
        if options.get("variance_type") in ("learned", "learned_range"):
            other = 0.01 + 0.1 * m.abs() if options["variance_type"] == "learned" else torch.sin(m)
            m = torch.cat([m, other], dim=1)
        sources = [torch.Generator().manual_seed(i) for _ in range(2)]
        calls = [
            partial(scheduler.step, m, t, x, **given, **({"generator": source} if "generator" in parameters else {}))
            for scheduler, source in zip((theirs, mine), sources, strict=True)
        ]
        outputs = of_both(*calls)
        if outputs is None:
            return False
        assert outputs[0].keys() == outputs[1].keys()
        for key in outputs[0]:
            error = distance(outputs[0][key], outputs[1][key])
            # Theirs takes the difference of two numbers as large as the state, where the result may be small.
            rounding = 4 * FLOAT32_ROUNDING * float(x.abs().max())
            large = level_of(theirs, i, t) > LARGEST_LEVEL
            assert error < SAME_IMAGES + rounding or large, (options, steps, key, i, error)
        assert torch.equal(*(g.get_state() for g in sources))
        x = outputs[0].prev_sample
        if not x.isfinite().all():
            return False
        if float(x.abs().max()) > 1e4:
            x = x / float(x.abs().max())
    return True


@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", COUNTED)
def test_random_options_give_the_steps_of_diffusers(name, part):
    """With compat, since what is put right is other than theirs."""
    if "use_beta_sigmas" in inspect.signature(getattr(diffusers, name).__init__).parameters:
        pytest.importorskip("scipy", reason="their beta levels need SciPy")
    compared = sum(compare(name, random.Random(f"{name} {part} {i}")) for i in range(SETS))
    assert compared > SETS / 4
