"""A classifier as one function: held to float64, the same bits for any batch, and when its modules run instead."""

import pytest
import torch
from torch import nn

from fastdiff import ops
from fastdiff.nets import encoder_lowering, encoder_pass
from support.encoder_networks import CASES, double, encoder, guided, inputs
from support.tolerances import ENGINE_NETWORK, TRAINING_NETWORK

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="needs the C++ extension")
LABELS = torch.tensor([0, 3, 6])


@pytest.fixture
def passes(monkeypatch):
    """How often the modules stood back."""
    taken = []
    real = encoder_pass._features
    monkeypatch.setattr(encoder_pass, "_features", lambda *given: (taken.append(1), real(*given))[1])
    return taken


def near(found, expected, tolerance):
    return float((found - expected).abs().max()) <= tolerance * float(expected.abs().max())


@pytest.mark.parametrize("apart", [True, False], ids=["samples apart", "together"])
@pytest.mark.parametrize("pool", CASES)
def test_logits_and_gradient_are_those_of_float64(pool, apart, passes, monkeypatch):
    if not apart:
        monkeypatch.setattr(encoder_lowering, "_MOST_WEIGHTS", 0)
    net, (x, t) = encoder(pool), inputs()
    logits, gradient = guided(net, x, t, LABELS)
    assert len(passes) == 1
    expected, slope = guided(double(net), x.double(), t, LABELS)
    assert len(passes) == 1
    assert near(logits, expected, ENGINE_NETWORK)
    assert near(gradient, slope, TRAINING_NETWORK)
    with torch.no_grad():
        assert torch.equal(net(x, t), logits)
    assert len(passes) == 2


@pytest.mark.parametrize("apart", [True, False], ids=["samples apart", "together"])
@pytest.mark.parametrize("pool", CASES)
def test_an_image_has_the_same_bits_in_any_batch_and_for_any_number_of_threads(pool, apart, monkeypatch):
    if not apart:
        monkeypatch.setattr(encoder_lowering, "_MOST_WEIGHTS", 0)
    net, (x, t) = encoder(pool), inputs()
    threads = torch.get_num_threads()
    whole = guided(net, x, t, LABELS)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for part in (slice(0, 1), slice(1, 3)):
                some = guided(net, x[part], t[part], LABELS[part])
                assert all(torch.equal(a, b[part]) for a, b in zip(some, whole, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_gradients_of_parameters_are_the_modules(passes):
    net, (x, t) = encoder("attention"), inputs()
    image = x.clone().requires_grad_()
    net(image, t).square().sum().backward()
    assert len(passes) == 1
    found = [image.grad, *(parameter.grad.clone() for parameter in net.parameters())]
    net.zero_grad()
    image = x.clone().requires_grad_()
    net.by_modules(image, t).square().sum().backward()
    expected = [image.grad, *(parameter.grad for parameter in net.parameters())]
    assert all(near(a, b, TRAINING_NETWORK) for a, b in zip(found, expected, strict=True))
    # Asked for by name.
    weight = net.out[2].c_proj.weight
    image = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(image, t).square().sum(), weight)
    assert near(slope, weight.grad, TRAINING_NETWORK)


def test_a_graph_that_is_kept_gives_its_gradient_again():
    net, (x, t) = encoder("spatial"), inputs()
    image = x.clone().requires_grad_()
    total = net(image, t).square().sum()
    slopes = [torch.autograd.grad(total, image, retain_graph=keep)[0] for keep in (True, True, False)]
    assert torch.equal(slopes[0], slopes[1])
    assert torch.equal(slopes[0], slopes[2])


def test_there_is_no_second_derivative():
    net, (x, t) = encoder("adaptive"), inputs()
    image = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(image, t).square().sum(), image, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()


def test_inference_mode_comes_and_goes(passes):
    net, (x, t) = encoder("attention"), inputs()
    with torch.inference_mode():
        inside = net(x, t)
    with torch.no_grad():
        assert torch.equal(net(x, t), inside)
    with torch.inference_mode():
        assert torch.equal(net(x.clone(), t), inside)
    assert len(passes) == 3


def change_weights(net):
    net.out[3].weight.data.mul_(2)
    net.input_blocks[1][0].conv1.weight.data.mul_(1.5)


def test_changed_weights_are_read_anew(passes):
    net, (x, t) = encoder("adaptive"), inputs()
    with torch.no_grad():
        before = net(x, t)
        change_weights(net)
        after, expected = net(x, t), net.by_modules(x, t)
    assert len(passes) == 2
    assert not near(after, before, ENGINE_NETWORK)
    assert near(after, expected, ENGINE_NETWORK)


OTHERS = {
    "training": lambda net: net.train(),
    "a dropout at work": lambda net: net.input_blocks[1][0].dropout.train(),
    "a hook": lambda net: net.middle_block.register_forward_hook(lambda *_: None),
    "another forward": lambda net: setattr(net.middle_block[0].conv1, "forward", net.middle_block[0].conv1.forward),
    "another module": lambda net: net.out.__setitem__(2, nn.GELU()),
    "float64": lambda net: net.double(),
    "another head": lambda net: net.input_blocks.insert(1, nn.Identity()),
}


@pytest.mark.parametrize("change", OTHERS)
def test_what_is_not_the_networks_own_runs_by_its_modules(change, passes):
    net, (x, t) = encoder("spatial_v2"), inputs()
    OTHERS[change](net)
    with torch.no_grad():
        try:
            net(x.to(net.out[0].weight.dtype), t)
        except TypeError:
            # The modules' own complaint.
            assert change == "another head"
    assert not passes


@pytest.mark.parametrize("what", ["types", "autocast", "a size"])
def test_calls_that_no_plan_computes_run_by_modules(what, passes):
    net, (x, t) = encoder("spatial"), inputs()
    with torch.no_grad():
        if what == "types":
            assert net(x[:0], t[:0]).shape == (0, 7)
        elif what == "autocast":
            with torch.autocast("cpu"):
                net(x, t)
        else:
            net(torch.randn(2, 3, 24, 16), t[:2])
    assert not passes
