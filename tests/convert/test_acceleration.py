"""fd.accelerate on a CPU: other people's networks in the engine, and back."""

import contextlib
import copy
import io
import pickle

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.convert import acceleration as in_place
from fastdiff.convert import in_engine
from fastdiff.convert.in_engine import InEngine, engine_of
from support.diffusers_networks import SMALL, diffusers_model
from support.foreign_networks import NAMES, make, value
from support.tolerances import FLOAT32_SUM


class Forbidden(Exception):
    """A module of the network was called."""


def forbid(monkeypatch):
    def refuse(*args, **kwargs):
        raise Forbidden

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", refuse)


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_puts_the_whole_network_into_the_engine(name):
    model, given = make(name)
    kind, state = type(model), {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        expected = value(model(*given))
    report = fd.accelerate(model)
    assert report.replaced[0].name == ""
    assert ("whole classifier" if "classifier" in name else "whole network in the engine") in str(report)
    assert isinstance(model, kind)
    with outside(), torch.no_grad():
        found = model(*given)
    assert type(found) is type(kind.forward(model, *given))
    assert value(found).ndim == 2 or value(found).stride() == expected.stride()
    assert (value(found) - expected).abs().max() < FLOAT32_SUM * expected.abs().max()
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert model in in_engine._engines
    fd.restore(model)
    assert type(model) is kind
    # Its weights in the engine, several times the network's own, are given back.
    assert model not in in_engine._engines
    with torch.no_grad():
        assert torch.equal(value(model(*given)), expected)


@contextlib.contextmanager
def outside():
    """The network's modules are not called."""
    with pytest.MonkeyPatch.context() as patched:
        forbid(patched)
        yield


@pytest.mark.parametrize("name", ["diffusers", "openai", "lucidrains"])
def test_modes_gradients_and_hooks_are_respected(name):
    model, given = make(name)
    fd.accelerate(model)
    with outside():
        with pytest.raises(Forbidden):
            model(*given)
        with torch.no_grad(), pytest.raises(Forbidden):
            model.train()(*given)
        model.eval()
        with torch.no_grad(), torch.autocast("cpu"), pytest.raises(Forbidden):
            model(*given)
    with torch.no_grad():
        seen = []
        around = model.register_forward_hook(lambda *_: seen.append(1))
        for _ in range(3):
            model(*given)
        with outside():
            model(*given)
        assert len(seen) == 4
        around.remove()
        inside = next(m for m in model.modules() if isinstance(m, nn.Linear))
        hook = inside.register_forward_hook(lambda *_: seen.append(2))
        for _ in range(4):
            model(*given)
        assert seen[4:] == [2] * 4
        assert "has one" in engine_of(model).obstacle
        hook.remove()
        expected = value(type(model).own.forward(model, *given))
        for _ in range(3):
            model(*given)
        with outside():
            assert (value(model(*given)) - expected).abs().max() < FLOAT32_SUM * expected.abs().max()


def test_changed_weights_are_its_own_until_they_stay():
    model, given = make("diffusers")
    fd.accelerate(model)
    with torch.no_grad():
        model.conv_in.weight.mul_(1.5)
        expected = type(model).own.forward(model, *given)[0]
        for _ in range(2):
            assert torch.equal(model(*given)[0], expected)
        model(*given)
        with outside():
            assert (model(*given)[0] - expected).abs().max() < FLOAT32_SUM * expected.abs().max()


def test_calls_in_other_forms():
    model, (x, _) = make("diffusers")
    with torch.no_grad():
        expected = [model(x, 3)[0], model(x, torch.tensor(3))[0], model(x.half().float(), 3, return_dict=False)[0]]
        fd.accelerate(model)
        calls = [model(x, 3).sample, model(sample=x, timestep=torch.tensor(3))[0]]
        calls.append(model(x.half().float(), 3, return_dict=False)[0])
        for found, own in zip(calls, expected, strict=True):
            assert (found - own).abs().max() < FLOAT32_SUM * own.abs().max()
        # What does not fit is refused by its own class.
        with pytest.raises(RuntimeError):
            model(x[:, :2], 3)


@pytest.mark.parametrize("name", ["diffusers", "openai", "lucidrains"])
def test_accelerated_networks_are_copied_and_pickled(name):
    model, given = make(name)
    with torch.no_grad():
        expected = value(model(*given))
    fd.accelerate(model)
    others = [copy.deepcopy(model)]
    if name != "lucidrains":
        # theirs holds an enum of PyTorch's that cannot be pickled.
        file = io.BytesIO()
        pickle.dump(model, file)
        file.seek(0)
        others.append(pickle.load(file))
    for other in others:
        assert isinstance(other, InEngine)
        with torch.no_grad():
            for _ in range(3):
                assert (value(other(*given)) - expected).abs().max() < FLOAT32_SUM * expected.abs().max()
        assert engine_of(other).network is not None


@pytest.mark.parametrize("name", ["diffusers", "openai", "lucidrains"])
def test_sizes_that_cannot_be_halved_are_refused_in_its_own_words(name):
    model, (x, t) = make(name)
    odd = x[:, :, :7]
    with torch.no_grad():
        with pytest.raises((RuntimeError, AssertionError)) as before:
            model(odd, t)
        fd.accelerate(model)
        with pytest.raises((RuntimeError, AssertionError)) as after:
            model(odd, t)
    assert str(after.value) == str(before.value)


def test_odd_sizes_run_where_nothing_is_halved():
    one_level = {"block_out_channels": (8,), "down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    model = diffusers_model(**SMALL | one_level)
    x, t = torch.randn(2, 3, 7, 5), torch.tensor([3, 700])
    with torch.no_grad():
        expected = model(x, t)[0]
        fd.accelerate(model)
        with outside():
            assert (model(x, t)[0] - expected).abs().max() < FLOAT32_SUM * expected.abs().max()


OTHERS = {
    "conv_norm_out": lambda m: setattr(m, "conv_norm_out", nn.GroupNorm(2, 8)),
    "computes something else": lambda m: setattr(m.mid_block.resnets[0], "output_scale_factor", 3.0),
    "was replaced": lambda m: setattr(m.conv_in, "forward", m.conv_in.forward),
}


@pytest.mark.parametrize("part", OTHERS)
def test_what_is_no_longer_the_class_is_left_and_named(part):
    model, given = make("diffusers")
    OTHERS[part](model)
    with torch.no_grad():
        expected = model(*given)[0]
        report = fd.accelerate(model)
        left = next(left for left in report.left if not left.name)
        assert left.reason.startswith("not in the engine: ")
        if part != "conv_norm_out":
            assert part in left.reason
        assert (model(*given)[0] - expected).abs().max() < FLOAT32_SUM * expected.abs().max()


def test_accelerate_keeps_what_is_faster_on_the_example(monkeypatch):
    model, given = make("diffusers")
    report = fd.accelerate(model, given)
    assert report.error < FLOAT32_SUM
    fd.restore(model)
    monkeypatch.setattr(in_place, "least_times", lambda calls, rounds: [1e-3, 2e-3])
    report = fd.accelerate(model, given)
    assert not isinstance(model, InEngine)
    assert "not in the engine: slower: 2.00 ms against 1.00 ms on the example" in str(report)


def test_accelerate_restores_where_the_engine_fails(monkeypatch):
    model, given = make("diffusers")
    kind = type(model)

    def fail(*args):
        raise RuntimeError("the outputs before and after differ")

    monkeypatch.setattr(in_place, "judge", fail)
    with pytest.raises(RuntimeError, match="differ"):
        fd.accelerate(model, given)
    assert type(model) is kind
    assert fd.restore(model) == 0


def test_other_types_are_left():
    model, _ = make("diffusers")
    report = fd.accelerate(model.double())
    assert "float64" in report.left[0].reason
