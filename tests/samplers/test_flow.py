"""The flow's tables: closed forms at their order, there and back, and DDIM inverted exactly."""

import numpy as np
import pytest
import torch

from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.samplers.flow import flow_decode, flow_encode
from fastdiff.samplers.invertible import invertible_encode
from support.gaussian_tables import run_table
from support.table_runs import execute, toy_model

# A lowest level so clean that the constant score below it costs nothing, and log alpha smooth between timesteps.
SCHEDULE = NoiseSchedule.from_alphas_cumprod(lambda u: np.exp(-9 * (1e-8 + u) ** 2), 4000)


def flow_gain(table, variance):
    spread = np.asarray(table.alphas) ** 2 * variance + np.asarray(table.sigmas) ** 2
    return np.sqrt(spread[-1] / spread[0])


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("build", [flow_encode, flow_decode])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_flow_reaches_the_closed_form_at_its_order(order, build, prediction):
    diffusion = Diffusion(SCHEDULE, prediction)
    counts = {1: (40, 80, 160), 2: (30, 60, 120), 3: (24, 48, 96), 4: (20, 30, 45)}[order]
    errors = []
    for count in counts:
        table = build(diffusion, count, order=order)
        assert table.num_evaluations == len(table) == 1 + count * order
        worst = 0.0
        for variance in (0.1, 0.25, 0.6, 3.0):
            _, gain = run_table_with_scaled_input(table, diffusion, variance)
            worst = max(worst, abs(gain / flow_gain(table, variance) - 1))
        errors.append(worst)
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # Short of the asymptotic regime a fit may be somewhat above the order.
    assert order - 0.15 < slope < order + 0.35, errors


def run_table_with_scaled_input(table, diffusion, variance):
    """`run_table` knows networks without input scaling: fold ci into the first row's network gain."""
    from fastdiff.process.table import CoefficientTable
    from support.gaussian_tables import network_gains

    columns = {name: values.copy() for name, values in table.columns.items()}
    scale = columns["ci"].copy()
    columns["ci"][:] = 1.0
    columns["pm"] *= scale
    assert set(scale[1:]) == {1.0}
    assert network_gains(diffusion, table["t"], variance).shape == scale.shape
    same = CoefficientTable(
        columns, init_scale=table.init_scale, alphas=table.alphas, sigmas=table.sigmas, data_prediction=False
    )
    return run_table(same, diffusion, variance)


def test_flow_decode_undoes_flow_encode():
    diffusion = Diffusion(NoiseSchedule.cosine(1000))
    x = torch.from_numpy(np.random.default_rng(0).uniform(-1, 1, (3, 1, 4, 4)))

    def error(order, steps):
        latent = execute(flow_encode(diffusion, steps, order=order), toy_model, x)
        return float((execute(flow_decode(diffusion, steps, order=order), toy_model, latent) - x).abs().max())

    # What order 4 leaves with 100 steps.
    assert error(4, 100) < 1e-3
    assert error(4, 100) < error(2, 100) < error(1, 100)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda d: flow_encode(d, 0), "steps"),
        (lambda d: flow_encode(d, 5, order=5), "order"),
        (lambda d: flow_decode(d, 2.5), "steps"),
        (lambda d: invertible_encode(d, 5, iterations=0), "iterations"),
        (lambda d: invertible_encode(d, 0), "steps"),
        (lambda d: flow_encode(Diffusion(NoiseSchedule.from_betas([1.0]), "v"), 5), "leaves none"),
    ],
)
def test_flow_refuses(call, message):
    with pytest.raises(ValueError, match=message):
        call(Diffusion(NoiseSchedule.cosine(20)))


def test_flow_ends_where_there_is_signal():
    table = flow_encode(Diffusion(NoiseSchedule.from_betas([0.1, 0.2, 1.0]), "v"), 5)
    np.testing.assert_allclose(table.alphas[-1], np.sqrt(0.9 * 0.8))


def test_flow_of_a_single_timestep_is_its_edge():
    table = flow_encode(Diffusion(NoiseSchedule.from_betas([0.1])), 5)
    assert len(table) == 1
    np.testing.assert_allclose(table.alphas, [1, np.sqrt(0.9)])
