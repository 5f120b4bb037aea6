"""A scheduler of diffusers and a table of ours from one start, with one toy network and one noise."""

import torch

from support.table_runs import execute, toy_model

PREDICTIONS = {"epsilon": "eps", "sample": "x0", "v_prediction": "v"}


def theirs_and_ours(scheduler, table, *, stochastic=False):
    """Final states of a diffusers scheduler and of a table, from one start, with the same toy network and noise."""
    x = torch.linspace(-1.5, 1.5, 16, dtype=torch.float64).reshape(2, 1, 2, 4)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(len(table), *x.shape, generator=generator)
    state = x.clone()
    times = [int(t) for t in scheduler.timesteps]
    for i, t in enumerate(times):
        options = {}
        if stochastic:
            options["variance_noise"] = noise[i]
        model_input = scheduler.scale_model_input(state, scheduler.timesteps[i])
        m = toy_model(model_input, torch.full((2,), t, dtype=torch.float64))
        state = scheduler.step(m, scheduler.timesteps[i], state, **options).prev_sample.double()
    return state, execute(table, toy_model, x, noise if stochastic else None)


def same(theirs, ours, tolerance=1e-4):
    assert float((theirs - ours).abs().max() / theirs.abs().max().clamp(min=1)) < tolerance
