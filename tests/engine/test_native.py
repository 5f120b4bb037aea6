"""The engine: plans, their reference executor, and the C++ executor, whole and instruction by instruction."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import convert
from fastdiff.engine import Buffer, Instruction, native
from support.diffusers_networks import CASES as DIFFUSERS_CASES
from support.diffusers_networks import diffusers_model
from support.engine_instructions import CONVOLUTIONS, convolution, run_one
from support.engine_networks import CONFIGS, double, inputs, network, relative
from support.networks import redrawn
from support.tolerances import (
    ENGINE_INSTRUCTION,
    ENGINE_NETWORK,
    FLOAT32_DEEP,
    FLOAT32_FEW,
    FLOAT32_RUN,
    FLOAT32_SUM,
    FLOAT64_DIFFERENCE,
)


@pytest.mark.parametrize("precision", ["fast", "strict"])
@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("size", [(16, 16), (8, 24), (4, 4), (20, 12)], ids=str)
def test_native_executor_is_the_network(case, size, precision):
    net = network(case)
    x, t, y = inputs(net, 3, *size)
    with torch.no_grad():
        expected = double(net)(x.double(), t, y)
    compiled = fd.compile(net, precision=precision)
    actual = compiled(x, t, y)
    assert actual.is_contiguous(memory_format=torch.channels_last)
    assert relative(actual, expected) < ENGINE_NETWORK
    if precision == "strict":
        assert {i.algorithm for i in compiled.plan(*size).instructions} == {"direct"}


@pytest.mark.parametrize("case", DIFFUSERS_CASES)
def test_native_executor_is_a_converted_diffusers_network(case):
    """Against diffusers itself, and chosen by runner "auto"."""
    model = diffusers_model(**DIFFUSERS_CASES[case])
    net = convert.to_unet(model)
    x, t, y = inputs(net, 2, net.config.image_size, net.config.image_size)
    with torch.no_grad():
        expected = model(x, t, class_labels=y).sample
    assert relative(fd.compile(net)(x, t, y), expected.double()) < FLOAT32_DEEP
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 4)
    options = {"shape": tuple(x.shape), "model_kwargs": None if y is None else {"y": y}, "progress": False}
    if net.config.out_channels == net.config.in_channels:
        native, auto, eager = (fd.sample(net, table, runner=r, **options) for r in ("native", "auto", "eager"))
        assert torch.equal(native, auto)
        assert (native - eager).abs().max() < FLOAT32_RUN * max(1.0, float(eager.abs().max()))


@pytest.mark.slow
def test_native_executor_is_the_published_network():
    torch.manual_seed(0)
    net = fd.UNet(fd.UNetConfig.preset("ho-cifar10")).eval()
    redrawn(net, 0.03)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.no_grad():
        expected = double(net)(x.double(), t)
    assert relative(fd.compile(net)(x, t), expected) < FLOAT32_DEEP


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("batch", [1, 5])
def test_convolution_matches_float64(case, residual, batch):
    actual, expected = convolution(case, residual, batch)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize(
    ("tokens", "heads", "size"), [((4, 4), 1, 64), ((1, 1), 2, 16), ((5, 13), 3, 48), ((8, 9), 1, 272)]
)
def test_attention_matches_float64(tokens, heads, size):
    width = heads * size
    x = 2 * torch.randn(2, 3 * width, *tokens, generator=torch.Generator().manual_seed(0))
    x[:, :width] /= size**0.5
    buffers = (Buffer(*tokens, 3 * width), Buffer(*tokens, width))
    actual = run_one(Instruction("attention", (0,), 1, heads=heads), buffers, [], x)
    q, k, v = x.double().reshape(2, 3, heads, size, -1).unbind(1)
    weights = torch.softmax(q.transpose(2, 3) @ k, dim=3)
    expected = (weights @ v.transpose(2, 3)).transpose(2, 3).reshape(2, width, *tokens)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize(("tokens", "width"), [((4, 4), 64), ((1, 1), 16), ((5, 13), 48), ((8, 9), 272)])
def test_attention_with_keys_of_its_own_matches_float64(tokens, width):
    generator = torch.Generator().manual_seed(0)
    q_and_v = 2 * torch.randn(2, 2 * width, *tokens, generator=generator)
    q_and_v[:, :width] /= width**0.5
    x, norm = torch.randn(2, width, *tokens, generator=generator), torch.randn(2, width, 2, 1, generator=generator)
    buffers = (Buffer(*tokens, 2 * width), Buffer(*tokens, width), Buffer(2, 1, width), Buffer(*tokens, width))
    instruction = Instruction("attention", (0, 1), 3, norm=2, residual=1)
    actual = run_one(instruction, buffers, [], q_and_v, [(1, x), (2, norm)])
    q, v = q_and_v.double().flatten(2).split(width, dim=1)
    keys = (x.double() * norm[:, :, :1].double() + norm[:, :, 1:].double()).flatten(2)
    weights = torch.softmax(q.transpose(1, 2) @ keys, dim=2)
    expected = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape) + x.double()
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("shape", [(16, 1, 1), (20, 9, 15), (128, 16, 16)], ids=str)
def test_statistics_match_float64(shape, offset):
    """Also where the mean is a thousand deviations from zero."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0)) + offset
    buffers = (Buffer(*shape[1:], shape[0]), Buffer(2, 1, shape[0]))
    actual = run_one(Instruction("stats", (0,), 1), buffers, [], x)
    mean = x.double().mean(dim=(2, 3))
    squares = (x.double() - mean[:, :, None, None]).square().sum(dim=(2, 3))
    np.testing.assert_allclose(actual[:, :, 0, 0], mean, rtol=FLOAT32_FEW, atol=FLOAT32_FEW)
    np.testing.assert_allclose(actual[:, :, 1, 0], squares, rtol=FLOAT32_SUM, atol=FLOAT64_DIFFERENCE)


@pytest.mark.parametrize("precision", ["fast", "bfloat16"])
@pytest.mark.parametrize("case", ["ho", "iddpm", "adm", "grey", "one head of 40 channels"])
def test_native_does_not_depend_on_batch_or_threads(case, precision):
    """To the bit: a sample's arithmetic is the same wherever it runs."""
    net = network(case)
    x, t, y = inputs(net, 7)
    compiled = fd.compile(net, precision=precision)
    whole = compiled(x, t, y)
    assert torch.equal(whole, compiled(x, t, y))
    for first, last in ((0, 1), (1, 4), (4, 7)):
        part = compiled(x[first:last], t[first:last], None if y is None else y[first:last])
        assert torch.equal(part, whole[first:last])
    before = torch.get_num_threads()
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            assert torch.equal(compiled(x, t, y), whole)
    finally:
        torch.set_num_threads(before)


def test_vectors_of_times_are_kept_until_their_layers_change():
    net = network("ho")
    x, _, _ = inputs(net, 2)
    compiled = fd.compile(net)
    times = torch.arange(native.MAX_TIMES + 6)
    found = [compiled(x, t.expand(2)) for t in times]
    assert len(compiled._known_times) == native.MAX_TIMES
    fresh = fd.compile(net)
    for t in (0, 5, 6, 69):
        assert torch.equal(compiled(x, times[t : t + 1].expand(2)), found[t])
        assert torch.equal(fresh(x[:1], times[t : t + 1]), found[t][:1])
    assert not torch.equal(compiled(x, torch.full((2,), 5.5)), found[5])
    with torch.no_grad():
        net.time_embed[-1].weight.mul_(1.5)
    assert not torch.equal(compiled(x, times[:1].expand(2)), found[0])
    assert torch.equal(compiled(x, times[:1].expand(2)), fd.compile(net)(x, times[:1].expand(2)))
