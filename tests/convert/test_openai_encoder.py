"""OpenAI's live classifier as fastdiff's: by its structure, and what is not it."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.convert import acceleration
from fastdiff.convert.in_engine import engine_of
from fastdiff.convert.openai_encoder import conventions_of, encoder_from_openai
from fastdiff.nets.encoder import POOLS
from support.encoder_networks import guided, inputs
from support.networks import shaken
from support.openai_networks import Encoder, ResBlock, TimestepEmbedSequential, whole
from support.tolerances import ENGINE_NETWORK, PEER_NETWORK, TRAINING_NETWORK

LABELS = torch.tensor([0, 3, 6])


def live(pool, down=True):
    torch.manual_seed(0)
    return shaken(Encoder(pool, down).eval(), 0.05)


def near(found, expected, tolerance):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("down", [True, False], ids=["blocks halve", "convolutions halve"])
@pytest.mark.parametrize("pool", POOLS)
def test_logits_and_gradient_in_the_engine_are_theirs(pool, down):
    net, (x, t) = live(pool, down), inputs()
    theirs = guided(net, x, t, LABELS)
    own = encoder_from_openai(net).double()
    exact = guided(own, x.double(), t, LABELS)
    assert all(near(a, b, PEER_NETWORK) for a, b in zip(theirs, exact, strict=True))
    report = fd.accelerate(net)
    assert "the whole classifier in the engine" in str(report)
    logits, gradient = guided(net, x, t, LABELS)
    assert near(logits, exact[0], ENGINE_NETWORK)
    assert near(gradient, exact[1], TRAINING_NETWORK)
    assert engine_of(net).network is not None


def test_gradients_of_its_parameters_stay_its_own():
    net, (x, t) = live("attention"), inputs()
    image = x.clone().requires_grad_()
    net(image, t).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in net.parameters()]
    net.zero_grad()
    fd.accelerate(net)
    image = x.clone().requires_grad_()
    net(image, t).square().sum().backward()
    for parameter, slope in zip(net.parameters(), expected, strict=True):
        assert near(parameter.grad, slope, TRAINING_NETWORK)


@pytest.mark.parametrize("times", [(2e-3, 1e-3), (1e-3, 2e-3)], ids=["faster", "slower"])
def test_the_check_times_and_compares_the_gradient(times, monkeypatch):
    net, (x, t) = live("attention"), inputs()
    seen = []

    def least_times(calls, rounds):
        seen.append([call() for call in calls])
        return times

    monkeypatch.setattr(acceleration, "least_times", least_times)
    report = fd.accelerate(net, (x, t))
    (before, after) = seen[0]
    assert [value.shape for value in after] == [(3, 7), x.shape]
    assert all(near(a, b, TRAINING_NETWORK) for a, b in zip(after, before, strict=True))
    slower = times[1] > times[0]
    assert ("slower: 2.00 ms against 1.00 ms on the example" in str(report)) == slower
    assert (engine_of(net).network is None) == slower


CHANGES = {
    "its pool is 'mean'": lambda net: setattr(net, "pool", "mean"),
    "in_layers.2.bias is missing": lambda net: setattr(net.input_blocks[1][0].in_layers[2], "bias", None),
    "not all alike": lambda net: setattr(net.input_blocks[1][0].in_layers[0], "eps", 1e-3),
    "do not add up": lambda net: net.input_blocks.append(TimestepEmbedSequential(ResBlock(64, 128, 64, True))),
    "computes something else": lambda net: net.middle_block.__setitem__(1, nn.Identity()),
    "was replaced": lambda net: setattr(net.middle_block[0], "forward", net.middle_block[0].forward),
}


@pytest.mark.parametrize("reason", CHANGES)
def test_what_it_cannot_be_is_named_and_stays_its_own(reason):
    net, (x, t) = live("adaptive"), inputs()
    CHANGES[reason](net)
    with torch.no_grad():
        expected = net(x, t)
        report = fd.accelerate(net)
        left = next(left for left in report.left if not left.name)
        assert left.reason.startswith("not in the engine: ")
        if reason != "computes something else":
            assert reason in left.reason
        assert near(net(x, t), expected, PEER_NETWORK)


def test_conventions_of_a_whole_network():
    found = conventions_of(whole())
    assert found == {"num_heads": 2, "head_channels": None, "norm_groups": 4, "norm_eps": 1e-5, "qkv_layout": "new"}
