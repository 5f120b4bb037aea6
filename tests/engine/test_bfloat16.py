"""The engine's products of bfloat16 numbers: instruction by instruction, whole networks, and samples."""

import copy
import pickle
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff.engine import Buffer, Instruction, choose, native, profile
from fastdiff.engine.bfloat16 import in_bfloat16 as plan_in_bfloat16
from fastdiff.engine.pack import CODE_FIELDS
from support.engine_instructions import CONVOLUTIONS, convolution, run_one
from support.engine_networks import CONFIGS, double, in_bfloat16, inputs, network, relative
from support.tolerances import BFLOAT16_FACTOR, BFLOAT16_INSTRUCTION, ENGINE_INSTRUCTION

DIRECT = [case for case in CONVOLUTIONS if case[-1] == "direct"]
ATTENTIONS = [((4, 4), 1, 64), ((1, 1), 2, 16), ((5, 13), 3, 48), ((8, 9), 1, 272)]
TABLE = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.linear(1000)), 4)

pytestmark = pytest.mark.filterwarnings("ignore:this processor has no products of bfloat16")


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("residual", [False, True], ids=["plain", "residual"])
@pytest.mark.parametrize("batch", [1, 5])
def test_convolution_in_bfloat16_is_near_float64(case, residual, batch):
    actual, expected = convolution(case, residual, batch, products="bfloat16")
    assert relative(actual, expected) < BFLOAT16_INSTRUCTION[case[-1]]


@pytest.mark.parametrize("case", DIRECT, ids=str)
@pytest.mark.parametrize("batch", [1, 5])
def test_products_of_bfloat16_numbers_are_exact(case, batch):
    """What needs no rounding has the errors of float32 sums alone."""
    actual, expected = convolution(case, True, batch, products="bfloat16", act=False, rounded=True)
    assert relative(actual, expected) < ENGINE_INSTRUCTION


@pytest.mark.parametrize(("tokens", "heads", "size"), ATTENTIONS)
def test_attention_in_bfloat16_is_near_float64(tokens, heads, size):
    width = heads * size
    x = 2 * torch.randn(2, 3 * width, *tokens, generator=torch.Generator().manual_seed(0))
    x[:, :width] /= size**0.5
    buffers = (Buffer(*tokens, 3 * width), Buffer(*tokens, width))
    actual = run_one(Instruction("attention", (0,), 1, heads=heads, products="bfloat16"), buffers, [], x)
    q, k, v = x.double().reshape(2, 3, heads, size, -1).unbind(1)
    weights = torch.softmax(q.transpose(2, 3) @ k, dim=3)
    expected = (weights @ v.transpose(2, 3)).transpose(2, 3).reshape(2, width, *tokens)
    assert relative(actual, expected) < BFLOAT16_INSTRUCTION["direct"]


@pytest.mark.parametrize(("tokens", "width"), [((4, 4), 64), ((1, 1), 16), ((5, 13), 48), ((8, 9), 272)])
def test_attention_with_keys_of_its_own_in_bfloat16_is_near_float64(tokens, width):
    generator = torch.Generator().manual_seed(0)
    q_and_v = 2 * torch.randn(2, 2 * width, *tokens, generator=generator)
    q_and_v[:, :width] /= width**0.5
    x, norm = torch.randn(2, width, *tokens, generator=generator), torch.randn(2, width, 2, 1, generator=generator)
    buffers = (Buffer(*tokens, 2 * width), Buffer(*tokens, width), Buffer(2, 1, width), Buffer(*tokens, width))
    instruction = Instruction("attention", (0, 1), 3, norm=2, residual=1, products="bfloat16")
    actual = run_one(instruction, buffers, [], q_and_v, [(1, x), (2, norm)])
    q, v = q_and_v.double().flatten(2).split(width, dim=1)
    keys = (x.double() * norm[:, :, :1].double() + norm[:, :, 1:].double()).flatten(2)
    weights = torch.softmax(q.transpose(1, 2) @ keys, dim=2)
    expected = (weights @ v.transpose(1, 2)).transpose(1, 2).reshape(x.shape) + x.double()
    assert relative(actual, expected) < BFLOAT16_INSTRUCTION["direct"]


@pytest.mark.parametrize("case", CONFIGS)
@pytest.mark.parametrize("size", [(8, 24), (20, 12)], ids=str)
def test_bfloat16_is_as_near_to_float64_as_pytorchs(case, size):
    net = network(case)
    x, t, y = inputs(net, 3, *size)
    with torch.no_grad():
        expected = double(net)(x.double(), t, y)
    error = relative(fd.compile(net, precision="bfloat16")(x, t, y), expected)
    assert 0 < error < BFLOAT16_FACTOR * relative(in_bfloat16(net)(x.bfloat16(), t, y), expected)


@pytest.mark.slow
def test_bfloat16_of_the_published_network_is_as_near_as_pytorchs():
    torch.manual_seed(0)
    net = fd.UNet(fd.UNetConfig.preset("ho-cifar10")).eval()
    for parameter in net.parameters():
        # Layers that begin at zero.
        if parameter.ndim > 1 and not parameter.any():
            torch.nn.init.normal_(parameter, std=0.02)
    x, t = torch.randn(2, 3, 32, 32), torch.tensor([3, 900])
    with torch.no_grad():
        expected = double(net)(x.double(), t)
    error = relative(fd.compile(net, precision="bfloat16")(x, t), expected)
    assert error < BFLOAT16_FACTOR * relative(in_bfloat16(net)(x.bfloat16(), t), expected)


def test_plan_in_bfloat16_leaves_layers_of_few_channels():
    plan = fd.compile(network("adm"), precision="bfloat16").plan(32, 32)
    kept = [i.parameter for i in plan.instructions if i.op in ("conv", "attention") and i.products == "float32"]
    assert kept == ["input_blocks.0.0", "conv_out"]
    assert {i.products for i in plan.instructions if i.op in ("stats", "norm", "pool", "repeat")} == {"float32"}
    assert plan_in_bfloat16(plan) == plan


@pytest.mark.parametrize(
    ("channels", "side", "algorithm"),
    [
        (64, 4, "winograd2"),
        (64, 2, "direct"),
        (64, 16, "winograd4"),
        (256, 4, "direct"),
        (256, 8, "winograd2"),
        (256, 16, "winograd4"),
    ],
)
def test_algorithm_in_bfloat16_follows_from_the_shape(channels, side, algorithm):
    unet = fd.UNet(fd.UNetConfig(image_size=side, channels=channels, channel_mult=(1,), attention_resolutions=()))
    plan = fd.compile(unet.eval(), precision="bfloat16").plan(side, side)
    found = {i.algorithm for i in plan.instructions if i.kernel == 3 and i.products == "bfloat16"}
    assert found == {algorithm}


def test_weights_in_bfloat16_take_half_the_room():
    net = network("ho")
    sizes = {p: fd.compile(net, precision=p).weights(16, 16).numel() for p in ("fast", "bfloat16")}
    assert sizes["bfloat16"] < 0.6 * sizes["fast"]


def test_packed_weights_in_bfloat16_have_a_file_of_their_own(tmp_path):
    net = network("ho")
    x, t, _ = inputs(net)
    expected = {p: fd.compile(net, precision=p)(x, t) for p in ("fast", "bfloat16")}
    for _ in range(2):
        for precision, result in expected.items():
            assert torch.equal(fd.compile(net, precision=precision, cache=tmp_path)(x, t), result)
        assert len(list(tmp_path.iterdir())) == 2


def test_profile_counts_two_bytes_per_weight():
    net = network("ho")
    found = {p: profile(fd.compile(net, precision=p), 1, (16, 16), repeats=1) for p in ("strict", "bfloat16")}
    for exact, half in zip(*found.values(), strict=True):
        if half.instruction.op == "conv" and half.instruction.products == "bfloat16":
            weights = net.get_parameter(f"{half.instruction.parameter}.weight").numel()
            larger = {"winograd4": 4, "winograd2": 16 / 9}.get(half.instruction.algorithm, 1)
            assert exact.bytes_moved - half.bytes_moved == 4 * weights - int(2 * weights * larger)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copy", "pickle"])
def test_copies_keep_the_precision(duplicate):
    compiled = fd.compile(network("ho"), precision="bfloat16")
    x, t, _ = inputs(compiled.unet)
    other = duplicate(compiled)
    assert other.precision == "bfloat16"
    assert "'bfloat16'" in repr(other)
    assert torch.equal(other(x, t), compiled(x, t))


def test_changed_weights_are_packed_again():
    net = network("ho")
    compiled = fd.compile(net, precision="bfloat16")
    x, t, _ = inputs(net)
    before = compiled(x, t)
    with torch.no_grad():
        net.middle_block[0].conv1.weight.mul_(1.5)
    after = compiled(x, t)
    assert not torch.equal(before, after)
    assert torch.equal(after, fd.compile(net, precision="bfloat16")(x, t))


def test_sample_takes_a_precision():
    net = network("ho")
    options = {"shape": (2, 3, 16, 16), "progress": False}
    compiled = {p: fd.compile(net, precision=p) for p in ("fast", "strict", "bfloat16")}
    for precision, model in compiled.items():
        expected = fd.sample(model, TABLE, **options)
        for runner in ("auto", "native"):
            assert torch.equal(fd.sample(net, TABLE, runner=runner, precision=precision, **options), expected)
        assert torch.equal(fd.sample(model, TABLE, precision=precision, **options), expected)
    assert torch.equal(fd.sample(net, TABLE, **options), fd.sample(compiled["fast"], TABLE, **options))
    assert set(native._cache[net]) == {(precision, "normal") for precision in compiled}


def test_pipeline_passes_the_precision_on():
    net = network("adm")
    pipe = fd.Pipeline(net, fd.Diffusion(fd.NoiseSchedule.linear(1000)))
    options = {"sampler": "ddim", "steps": 3, "labels": [1, 2]}
    plain = {p: pipe.sample(2, precision=p, **options) for p in (None, "fast", "bfloat16")}
    assert torch.equal(plain[None], plain["fast"])
    assert not torch.equal(plain["fast"], plain["bfloat16"])
    guided = {p: pipe.sample(2, precision=p, guidance=2.0, null_label=0, **options) for p in ("fast", "bfloat16")}
    assert not torch.equal(guided["fast"], guided["bfloat16"])


def test_a_pipeline_has_a_precision_of_its_own(monkeypatch):
    """All that it does on a CPU runs with it, and is told apart from what runs without."""
    pipe = fd.Pipeline(network("ho"), fd.Diffusion(fd.NoiseSchedule.cosine(20)))
    x = inputs(pipe.unet, 2)[0].clamp(-1, 1)
    mask, pixels = torch.zeros(1, 1, *x.shape[2:]), (127.5 * (x + 1)).to(torch.uint8)
    few = {"steps": 2}
    calls = {
        "sample": lambda: pipe.sample(2, **few),
        "vary": lambda: pipe.vary(x, **few),
        "inpaint": lambda: pipe.inpaint(x, mask, steps=2, jump_repeats=1),
        "encode": lambda: pipe.encode(x, **few),
        "interpolate": lambda: pipe.interpolate(x, x.flip(0), **few),
        "progressive": lambda: pipe.progressive(2, rows=1, **few).samples,
        "likelihood": lambda: pipe.likelihood(pixels, timesteps=[3, 9]).total,
    }
    found = {name: call() for name, call in calls.items()}
    by_argument = pipe.sample(2, precision="bfloat16", **few)
    pipe.precision = "bfloat16"
    assert torch.equal(calls["sample"](), by_argument)
    for name, call in calls.items():
        assert not torch.equal(call(), found[name]), name
    assert torch.equal(pipe.sample(2, precision="fast", **few), found["sample"])
    with pytest.raises(ValueError, match="precision must be 'fast', 'strict' or 'bfloat16', got 'int8'"):
        pipe.precision = "int8"
    monkeypatch.setattr(choose, "_said", set())
    with pytest.warns(RuntimeWarning, match="the density by an ODE takes gradients"):
        pipe.likelihood(pixels, "ode", tolerance=0.5)


def test_a_precision_that_does_not_fit_is_refused():
    net = network("ho")
    options = {"shape": (1, 3, 16, 16), "progress": False}
    with pytest.raises(ValueError, match="precision must be 'fast', 'strict' or 'bfloat16', got 'int8'"):
        fd.sample(net, TABLE, precision="int8", **options)
    with pytest.raises(ValueError, match="is the C\\+\\+ engine's, and runner 'eager'"):
        fd.sample(net, TABLE, precision="bfloat16", runner="eager", **options)
    with pytest.raises(ValueError, match="must be that of the compiled network, 'strict', got 'bfloat16'"):
        fd.sample(fd.compile(net, precision="strict"), TABLE, precision="bfloat16", **options)


def test_what_is_used_instead_is_said_once(monkeypatch):
    monkeypatch.setattr(choose, "_said", set())
    model = torch.nn.Conv2d(3, 3, 3, padding=1)
    call = lambda: fd.sample(  # noqa: E731
        lambda x, t: model(x), TABLE, shape=(1, 3, 8, 8), precision="bfloat16", progress=False
    )
    with pytest.warns(RuntimeWarning, match="cannot run this .*: the network computes in its own type instead"):
        call()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


def test_a_processor_without_such_products_is_said_once():
    code = (
        "import os, sys, warnings; os.environ['FASTDIFF_CPU_ISA'] = 'generic'; sys.path.insert(0, 'tests')\n"
        "import torch, fastdiff as fd\nfrom support.engine_networks import network\n"
        "with warnings.catch_warnings(record=True) as said:\n"
        "    warnings.simplefilter('always')\n"
        "    for case in ('ho', 'grey'): fd.compile(network(case), precision='bfloat16')\n"
        "print(len(said), said[0].message)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.startswith("1 this processor has no products of bfloat16 numbers"), done.stderr


@pytest.mark.parametrize(
    ("pairs", "message"), [(0, "scratch is for fewer|outside of the arena"), (2, "do not fit together")]
)
def test_a_plan_of_another_type_than_its_weights_is_refused(pairs, message):
    compiled = fd.compile(network("ho"), precision="bfloat16")
    x, t, _ = inputs(compiled.unet)
    x = x.contiguous(memory_format=torch.channels_last)
    prepared = compiled.prepare(len(x), 16, 16)
    code = prepared.code.clone()
    code[:, CODE_FIELDS.index("pairs")] = pairs
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.plan_forward(
            x, code, compiled.weights(16, 16), compiled.times(t), *prepared.memory, torch.empty_like(x)
        )
