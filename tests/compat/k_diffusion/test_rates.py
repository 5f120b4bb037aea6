"""Learning rates and the averages' decay, by their formulas."""

import pytest
import torch

from fastdiff.compat import k_diffusion as k


def rates(schedule, steps, **options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    found = schedule(optimizer, **options)
    seen = []
    for _ in range(steps):
        seen.append(found.get_last_lr()[0])
        optimizer.step()
        found.step()
    return seen


def test_rates_fall_and_warm_up():
    inverse = rates(k.utils.InverseLR, 4, inv_gamma=2.0, power=0.5, warmup=0.9)
    assert inverse == pytest.approx([0.5 * (1 - 0.9 ** (i + 1)) * (1 + i / 2) ** -0.5 for i in range(4)])
    exponential = rates(k.utils.ExponentialLR, 5, num_steps=2, decay=0.25, min_lr=0.1)
    assert exponential == pytest.approx([0.5, 0.25, 0.125, 0.1, 0.1])
    assert rates(k.utils.ConstantLRWithWarmup, 3, warmup=0.5) == pytest.approx([0.25, 0.375, 0.4375])
    with pytest.raises(ValueError, match="warmup must be"):
        rates(k.utils.ConstantLRWithWarmup, 1, warmup=1.0)


def test_ema_warmup_begins_as_a_mean():
    warmup = k.utils.EMAWarmup(max_value=0.7)
    decays = []
    for _ in range(6):
        decays.append(warmup.get_value())
        warmup.step()
    # After n steps the mean of n + 1 values: decay n / (n + 1).
    assert decays == pytest.approx([0, 1 / 2, 2 / 3, 0.7, 0.7, 0.7])
    again = k.utils.EMAWarmup(power=3.0)
    again.load_state_dict(warmup.state_dict())
    assert again.get_value() == warmup.get_value()
    assert k.utils.EMAWarmup(start_at=5, last_epoch=3).get_value() == 0
