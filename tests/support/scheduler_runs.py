"""A scheduler of diffusers and our drop-in for it, run side by side with one toy network."""

import inspect

import pytest
import torch

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff.compat import diffusers as ours  # noqa: E402

# diffusers gives torch tensors to NumPy in ways that NumPy 2 deprecates, and warns of its own older options.
QUIET = [
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
    # torchsde, of the last digit of a level.
    pytest.mark.filterwarnings("ignore:Should have t[ab]:UserWarning"),
]
EVERY = [name for name in ours.__all__ if name.endswith("Scheduler") and name != "FusedScheduler"]
# Of processes without betas; test_processes.py has them.
WITHOUT_BETAS = [name for name in EVERY if name.startswith(("EDM", "Flow", "IPNDM"))]
NAMES = [name for name in EVERY if name not in WITHOUT_BETAS]
# Theirs take no network that predicts the image.
WITHOUT_X0 = (
    "DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
)  # fmt: skip
# What the drop-ins promise; diffusers computes its levels and states in float32.
SAME_IMAGES = 1e-4

_PREDICTED = ("pred_original_sample", "denoised", "pred_noised_sample")


def pair(name, **options):
    """Theirs and ours, with the same options but for compat."""
    compat = {"compat": options.pop("compat")} if "compat" in options else {}
    return getattr(diffusers, name)(**options), getattr(ours, name)(**options, **compat)


def toy(x, t):
    return 0.6 * x + 0.3 * torch.sin(2 * x + t / 300)


def run(scheduler, *, shape=(2, 3, 4, 4), dtype=torch.float32, model=toy, generator=1, first=0, **options):
    """Every state and every predicted image of a run."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    # Flows start from the noise itself.
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    scaled = getattr(scheduler, "scale_model_input", lambda x, t: x)
    if "generator" in inspect.signature(scheduler.step).parameters:
        options["generator"] = torch.Generator().manual_seed(generator) if isinstance(generator, int) else generator
    seen = []
    for t in scheduler.timesteps[first:]:
        m = model(scaled(x, t), t).to(dtype)
        result = scheduler.step(m, t, x, **options)
        x = result.prev_sample
        seen.append(x)
        seen += [result[name] for name in _PREDICTED if result.get(name) is not None]
    return seen


def assert_same(theirs, mine, tolerance=SAME_IMAGES):
    assert len(theirs) == len(mine)
    for a, b in zip(theirs, mine, strict=True):
        assert a.dtype == b.dtype
        assert a.shape == b.shape
        scale = float(a.abs().max().clamp(min=1))
        assert float((a - b).abs().max()) / scale < tolerance


def with_timesteps(schedulers, steps):
    for scheduler in schedulers:
        scheduler.set_timesteps(steps)
    theirs, mine = schedulers
    assert torch.equal(theirs.timesteps, mine.timesteps)
    assert theirs.timesteps.dtype == mine.timesteps.dtype
    if hasattr(theirs, "sigmas"):
        assert torch.equal(theirs.sigmas, mine.sigmas)
    return theirs, mine
