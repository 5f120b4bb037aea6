"""The adaptive Runge-Kutta solver: its order, and every sample's own steps."""

import torch

from fastdiff.sampling.runge_kutta import integrate
from support.tolerances import FLOAT64


def test_integrate_has_order_five_and_every_sample_its_own_steps():
    rates = torch.tensor([0.1, 1.0, 30.0], dtype=torch.float64)
    y = torch.ones(3, 1, dtype=torch.float64)

    def slope(s, state, which):
        return -rates[which, None] * state, rates[which, None] * torch.ones_like(state)

    for tolerance in (1e-4, 1e-8):
        found = integrate(slope, y, torch.zeros(3, 1, dtype=torch.float64), 2.0, 0.0, tolerance, 1000)
        # Backwards in time, so the exponentials grow; the error is a share of them.
        expected = torch.exp(2 * rates)[:, None]
        assert float((found.state / expected - 1).abs().max()) < 2000 * tolerance
        torch.testing.assert_close(found.integrals[:, 0], -2 * rates, rtol=FLOAT64, atol=FLOAT64)
        assert found.steps[0] < found.steps[1] < found.steps[2]
