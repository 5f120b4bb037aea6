"""Tests of fastdiff.training.ema. Independent oracle: the recurrence written out in float64 NumPy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fastdiff.training.ema import Ema


def network(seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Linear(5, 2))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return module


@pytest.mark.parametrize("warmup", [True, False], ids=["warmup", "constant"])
def test_ema_follows_the_recurrence(warmup: bool) -> None:
    module = network()
    ema = Ema(module, 0.9, warmup=warmup)
    expected = [p.detach().double().numpy() for p in module.parameters()]
    generator = torch.Generator().manual_seed(1)
    for step in range(200):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(torch.randn(parameter.shape, generator=generator))
        ema.update(step)
        decay = min(0.9, (1 + step) / (10 + step)) if warmup else 0.9
        expected = [
            decay * e + (1 - decay) * p.detach().double().numpy()
            for e, p in zip(expected, module.parameters(), strict=True)
        ]
    for shadow, e in zip(ema.state_dict().values(), expected, strict=True):
        # About ten float32 roundings are remembered at decay 0.9, of values up to 50.
        np.testing.assert_allclose(shadow.numpy(), e, rtol=0, atol=50 * 10 * 2**-24)


def test_ema_decay_warms_up_to_its_bound() -> None:
    ema = Ema(network(), 0.9999)
    assert [ema.decay_at(s) for s in (0, 1, 90)] == [0.1, 2 / 11, 0.91]
    assert ema.decay_at(10**6) == 0.9999


def test_ema_is_a_function_of_the_steps_taken() -> None:
    def run(resume_at: int | None) -> dict[str, torch.Tensor]:
        module = network()
        ema = Ema(module, 0.99)
        for step in range(8):
            if step == resume_at:
                state = {name: value.clone() for name, value in ema.state_dict().items()}
                ema = Ema(module, 0.99)
                ema.load_state_dict(state)
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.mul_(1.1)
            ema.update(step)
        return ema.state_dict()

    whole, resumed = run(None), run(5)
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)


def test_ema_shadow_is_float32_and_keeps_the_layout() -> None:
    module = network().to(torch.bfloat16).to(memory_format=torch.channels_last)
    ema = Ema(module, 0.5)
    ema.update(0)
    shadow = ema.state_dict()["0.weight"]
    assert shadow.dtype == torch.float32
    assert shadow.is_contiguous(memory_format=torch.channels_last)


def test_ema_applied_to_gives_the_weights_back() -> None:
    module = network()
    ema = Ema(module, 0.5)
    first = {name: value.clone() for name, value in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    last = {name: value.clone() for name, value in module.state_dict().items()}

    def fail_inside() -> None:
        with ema.applied_to(module):
            assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail_inside()
    assert all(torch.equal(value, last[name]) for name, value in module.state_dict().items())
    ema.copy_to(module)
    assert all(torch.equal(value, first[name]) for name, value in module.state_dict().items())


def test_ema_refuses_what_does_not_fit() -> None:
    module = network()
    ema = Ema(module, 0.5)
    with pytest.raises(ValueError, match=r"decay must be in \[0, 1\), got 1.0"):
        Ema(module, 1.0)
    with pytest.raises(ValueError, match="step must be a whole number, at least 0"):
        ema.update(-1)
    with pytest.raises(ValueError, match=r"another network: 0\.bias missing"):
        ema.load_state_dict({name: value for name, value in ema.state_dict().items() if name != "0.bias"})
    with pytest.raises(ValueError, match=r"another network: 0\.weight"):
        ema.copy_to(nn.Sequential(nn.Conv2d(4, 4, 3), nn.Linear(5, 2)))
