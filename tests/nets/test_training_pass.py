"""A network in training as one function: held to float64 and to its modules, and when its modules run instead."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff import ops
from fastdiff.nets import training_lowering, training_pass
from fastdiff.nets.blocks import Block
from fastdiff.nets.dropout import keyed_dropout
from support.networks import fan_scaled, small_preset, two_levels
from support.tolerances import TRAINING_NETWORK

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="needs the C++ extension")

WIDE = {"channels": 16, "norm_groups": 4, "dropout": 0.0}
# Whole vectors in every head and level.
NETWORKS = {
    "digits": small_preset("digits", channels=16),
    "ho-cifar10": small_preset("ho-cifar10", channels=16),
    "iddpm-cifar10": small_preset("iddpm-cifar10", channels=64),
    "labels": two_levels(**WIDE, num_classes=3),
    "scale and shift": two_levels(**WIDE, in_channels=3, scale_shift_norm=True, resblock_updown=True, head_channels=16),
    "legacy heads": two_levels(**WIDE, num_heads=2, channel_mult=(1, 4), qkv_layout="legacy", out_channels=6),
    "plain resampling": two_levels(**WIDE, conv_resample=False, num_res_blocks=2),
    "symmetric": two_levels(**WIDE, downsample_padding="symmetric", time_embedding="cos_sin", out_channels=2),
}


@pytest.fixture
def passes(monkeypatch):
    """How often the modules stood back."""
    taken = []
    real = training_pass._Network.apply
    monkeypatch.setattr(training_pass._Network, "apply", lambda *arguments: (taken.append(1), real(*arguments))[1])
    return taken


def build(config, **changes):
    torch.manual_seed(0)
    return fan_scaled(fd.UNet(dataclasses.replace(config, **changes))).train()


def batch(config, size=3):
    generator = torch.Generator().manual_seed(1)
    side = 4 * config.size_divisor
    x = torch.randn(size, config.in_channels, side, 2 * side, generator=generator)
    y = None if config.num_classes is None else torch.arange(size) % config.num_classes
    return x, torch.arange(size) * 100, y


def gradients(unet, x, t, y):
    """The result, and the gradients of a sum over it."""
    unet.zero_grad()
    out = unet(x, t, y)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2)).to(out.dtype)
    (out * weights).sum().backward()
    return [out.detach(), *(parameter.grad for parameter in unet.parameters())]


def by_modules(unet, *arguments):
    """The same with a hook that changes nothing."""
    handle = unet.norm_out.register_forward_hook(lambda *_: None)
    try:
        return gradients(unet, *arguments)
    finally:
        handle.remove()


def near(ours, theirs):
    return float((ours - theirs).abs().max()) <= TRAINING_NETWORK * float(theirs.abs().max())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_are_those_of_float64(name, passes):
    config = NETWORKS[name]
    unet, arguments = build(config), batch(config)
    found, modules = gradients(unet, *arguments), by_modules(unet, *arguments)
    assert len(passes) == 1
    x, t, y = arguments
    exact = gradients(copy.deepcopy(unet).double(), x.double(), t, y)
    for ours, theirs, right in zip(found, modules, exact, strict=True):
        error, theirs = ((value - right).abs().max() / right.abs().max() for value in (ours, theirs))
        assert float(error) <= max(TRAINING_NETWORK, 2 * float(theirs))


def test_gradients_lie_as_the_parameters_do():
    unet = build(NETWORKS["ho-cifar10"])
    gradients(unet, *batch(unet.config))
    assert all(parameter.grad.stride() == parameter.stride() for parameter in unet.parameters())


@pytest.mark.parametrize("name", ["ho-cifar10", "scale and shift", "legacy heads"])
def test_bits_do_not_depend_on_the_number_of_threads(name):
    unet, threads = build(NETWORKS[name], dropout=0.2), torch.get_num_threads()
    arguments, found = batch(unet.config, 9), []
    keyed_dropout(unet).at(1, 2, range(9))
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(gradients(unet, *arguments))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], others, strict=True))


@pytest.mark.parametrize("name", NETWORKS)
def test_samples_that_go_through_by_themselves_have_the_bits_of_a_batch(name, monkeypatch):
    # Otherwise networks of small images alone do so.
    for limit in ("_MOST_WEIGHTS", "_MOST_FLOATS"):
        monkeypatch.setattr(training_lowering, limit, 1 << 40)
    unet, threads = build(NETWORKS[name], dropout=0.2), torch.get_num_threads()
    arguments, found = batch(unet.config, 5), []
    keyed_dropout(unet).at(1, 2, range(5))
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            found.append(gradients(unet, *arguments))
    finally:
        torch.set_num_threads(threads)
    (plan,) = training_pass._known[unet].plans.values()
    assert plan is not None
    assert plan.alone is not None
    monkeypatch.setattr(training_lowering, "_MOST_WEIGHTS", 0)
    training_pass._known.pop(unet)
    expected = gradients(unet, *arguments)
    (plan,) = training_pass._known[unet].plans.values()
    assert plan is not None
    assert plan.alone is None
    for ours in found:
        assert all(torch.equal(a, b) for a, b in zip(ours, expected, strict=True))


def test_masks_are_those_of_the_modules(passes):
    unet = build(NETWORKS["digits"], dropout=0.5)
    arguments = batch(unet.config)
    keyed_dropout(unet).at(1, 2, (5, 0, 7))
    for ours, theirs in zip(gradients(unet, *arguments), by_modules(unet, *arguments), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=TRAINING_NETWORK, atol=TRAINING_NETWORK * float(theirs.abs().max())
        )
    assert len(passes) == 1


def test_masks_without_draws_are_those_of_the_modules():
    unet = build(NETWORKS["digits"], dropout=0.5)
    arguments = batch(unet.config)
    torch.manual_seed(3)
    ours = gradients(unet, *arguments)[0]
    torch.manual_seed(3)
    theirs = by_modules(unet, *arguments)[0]
    assert near(ours, theirs)


def test_a_sample_of_the_result_does_not_depend_on_its_batch():
    unet = build(NETWORKS["ho-cifar10"])
    x, t, _ = batch(unet.config, 5)
    whole = unet(x, t)
    parts = torch.cat([unet(x[:2], t[:2]), unet(x[2:], t[2:])])
    assert torch.equal(whole, parts)


def test_passes_that_overlap_in_time_have_an_arena_each():
    unet = build(NETWORKS["digits"])
    x, t, _ = batch(unet.config)
    expected = gradients(unet, x, t, None)[1:]
    unet.zero_grad()
    first, second = unet(x, t), unet(2 * x, t)
    weights = torch.randn(first.shape, generator=torch.Generator().manual_seed(2))
    (first * weights).sum().backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(unet.parameters(), expected, strict=True))
    (0 * second.sum()).backward()
    assert all(torch.equal(p.grad, g) for p, g in zip(unet.parameters(), expected, strict=True))


def test_a_graph_that_is_kept_can_be_gone_through_again():
    unet = build(NETWORKS["digits"])
    x, t, _ = batch(unet.config)
    loss = unet(x, t).square().sum()
    loss.backward(retain_graph=True)
    once = [parameter.grad.clone() for parameter in unet.parameters()]
    loss.backward()
    assert all(torch.equal(p.grad, 2 * g) for p, g in zip(unet.parameters(), once, strict=True))
    with pytest.raises(RuntimeError, match="second time"):
        loss.backward()


def test_a_parameter_that_changed_meanwhile_is_refused():
    unet = build(NETWORKS["digits"])
    x, t, _ = batch(unet.config)
    loss = unet(x, t).sum()
    with torch.no_grad():
        unet.norm_out.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_hooks_of_parameters_see_every_gradient(passes):
    unet, seen = build(NETWORKS["labels"]), set()
    for name, parameter in unet.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda p, name=name: seen.add((name, p.grad is not None)))
    gradients(unet, *batch(unet.config))
    assert seen == {(name, True) for name, _ in unet.named_parameters()}
    assert passes


def frozen(unet):
    unet.conv_out.bias.requires_grad_(False)


def hooked(unet):
    unet.middle_block[0].register_forward_hook(lambda *_: None)


def watched_on_the_way_back(unet):
    unet.middle_block[0].conv1.register_full_backward_hook(lambda *_: None)


def replaced(unet):
    unet.middle_block[0].conv1 = nn.Sequential(unet.middle_block[0].conv1)


def of_a_subclass(unet):
    class Mine(Block):
        pass

    unet.middle_block.__class__ = Mine


def with_a_method_of_its_own(unet):
    unet.embed = unet.embed


def recomputing(unet):
    unet.middle_block.recompute = True


def partly_keyed(unet):
    keyed_dropout(unet.middle_block).at(0, 0, range(3))


def in_another_format(unet):
    conv = unet.middle_block[0].conv1
    conv.weight.data = conv.weight.data.contiguous()


CHANGES = (
    frozen, hooked, watched_on_the_way_back, replaced, of_a_subclass, with_a_method_of_its_own, recomputing,
    partly_keyed, in_another_format,
)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_modules_run_where_a_plan_would_not_do(change, passes):
    unet = build(NETWORKS["digits"], dropout=0.1)
    x, t, _ = batch(unet.config)
    unet(x, t)
    assert len(passes) == 1
    change(unet)
    unet(x, t).sum().backward()
    assert len(passes) == 1


def test_modules_run_in_evaluation_for_an_input_that_wants_a_gradient_and_under_autocast(passes):
    unet = build(NETWORKS["digits"])
    x, t, _ = batch(unet.config)
    with torch.no_grad():
        unet(x, t)
    unet(x.clone().requires_grad_(), t).sum().backward()
    unet(x.double(), t).sum().backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        unet(x, t).sum().backward()
    unet.eval()(x, t).sum().backward()
    copy.deepcopy(unet).double().train()(x, t).sum().backward()
    assert not passes


def test_a_changed_network_gets_another_plan():
    unet = build(NETWORKS["digits"])
    arguments = batch(unet.config)
    gradients(unet, *arguments)
    unet.middle_block[0].norm1.eps = 0.5
    for ours, theirs in zip(gradients(unet, *arguments), by_modules(unet, *arguments), strict=True):
        torch.testing.assert_close(
            ours, theirs, rtol=TRAINING_NETWORK, atol=TRAINING_NETWORK * float(theirs.abs().max())
        )


def test_memory_is_given_back_in_evaluation():
    unet = build(NETWORKS["digits"])
    gradients(unet, *batch(unet.config))
    assert training_pass._known[unet].arenas
    unet.eval()
    assert not training_pass._known[unet].arenas
