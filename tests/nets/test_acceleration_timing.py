"""What is timed, and what becomes of a fused module that is slower."""

import pytest
import torch
from torch import nn

from fastdiff.nets import acceleration
from fastdiff.nets.acceleration import accelerate
from fastdiff.nets.acceleration_timing import least_times, time_modules, unfuse


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 1), nn.Sequential(nn.GroupNorm(2, 8), nn.SiLU()), nn.GroupNorm(4, 8)).eval()


def test_least_times_calls_all_in_turns():
    order = []
    times = least_times((lambda: order.append(0), lambda: order.append(1)), rounds=4)
    assert order == [0, 1] * 5
    assert all(0 <= seconds < 1 for seconds in times)


def test_modules_are_timed_on_what_they_are_given():
    model, x = network(), torch.randn(2, 3, 4, 4)
    accelerate(model)
    with torch.no_grad():
        times = time_modules(lambda: model(x), model)
    # The Sequential calls the op itself, so that its norm is never called.
    assert set(times) == {"1", "2"}
    assert all(before > 0 and after > 0 for before, after in times.values())
    assert not any(module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("slow", ["1", "2"])
def test_what_is_slower_stays_as_it_was(slow, monkeypatch):
    model, x = network(), torch.randn(2, 3, 4, 4)
    expected = model(x)
    rounds = iter(({slow: (1e-6, 2e-6)}, {}))
    monkeypatch.setattr(acceleration, "time_modules", lambda evaluate, model: next(rounds))
    report = accelerate(model, x)
    assert type(model[int(slow)]) in (nn.Sequential, nn.GroupNorm)
    assert f"slower by a fused op: 2 us against 1 us ({slow})" in str(report)
    torch.testing.assert_close(model(x), expected)


def test_unfuse_gives_the_class_back():
    model = network()
    accelerate(model)
    assert unfuse(model, "2") == "GroupNorm"
    assert type(model[2]) is nn.GroupNorm
