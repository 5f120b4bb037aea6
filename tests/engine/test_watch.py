"""A compiled network notices every change of the network, and names what it cannot run."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.engine import Unsupported
from fastdiff.engine.watch import Watch
from support.engine_networks import inputs, network, relative
from support.tolerances import ENGINE_NETWORK, FLOAT32_RUN


def agrees(compiled, net, x, t, y=None):
    """Whether the compiled network is what the module is now, in float64."""
    with torch.no_grad():
        expected = copy.deepcopy(net).double()(x.double(), t, y)
    return relative(compiled(x, t, y), expected) < ENGINE_NETWORK


def step(net):
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.01)
    x, t, y = inputs(net)
    net(x, t, y).square().mean().backward()
    optimizer.step()


def swap_to_an_average(net):
    average = fd.Ema(net, decay=0.5)
    step(net)
    average.update(10)
    average.copy_to(net)


@torch.no_grad()
def in_place(net):
    net.conv_out.bias += 1
    net.time_embed[0].bias += 1


@torch.inference_mode()
def in_inference_mode(net):
    net.input_blocks[1][0].conv1.weight.mul_(1.5)


def through_numpy(net):
    net.conv_out.weight.detach().numpy()[...] *= 2


def replace_a_parameter(net):
    net.middle_block[0].norm1.weight = nn.Parameter(2 * net.middle_block[0].norm1.weight.detach())


def replace_a_convolution(net):
    net.output_blocks[0][0].conv2 = type(net.output_blocks[0][0].conv2)(64, 64)


def replace_by_another_shape(net):
    net.conv_out = nn.Conv2d(32, 3, 1)


def without_biases(net):
    net.middle_block[1].qkv = nn.Linear(64, 3 * 64, bias=False)
    net.middle_block[1].proj = nn.Linear(64, 64, bias=False)
    net.middle_block[0].emb_proj = nn.Linear(128, 64, bias=False)
    net.time_embed[2] = nn.Linear(128, 128, bias=False)
    net.conv_out = nn.Conv2d(32, 3, 3, padding=1, bias=False)


def into_one_vector(net):
    """Parameters become slices of a vector, at odd offsets."""
    net.to(memory_format=torch.contiguous_format)
    nn.utils.vector_to_parameters(0.9 * nn.utils.parameters_to_vector(net.parameters()).detach(), net.parameters())


CHANGES = {
    "optimizer": step,
    "average": swap_to_an_average,
    "in place": in_place,
    "in inference mode": in_inference_mode,
    "load_state_dict": lambda net: net.load_state_dict(network("ho", seed=3).state_dict()),
    "load_state_dict, assigned": lambda net: net.load_state_dict(network("ho", seed=3).state_dict(), assign=True),
    "data, in place": lambda net: [p.data.mul_(1.1) for p in net.parameters()],
    "data of a bias": lambda net: net.conv_out.bias.data.fill_(1),
    "data": lambda net: setattr(net.conv_out.bias, "data", torch.ones(3)),
    "numpy": through_numpy,
    "parameter": replace_a_parameter,
    "layer": replace_a_convolution,
    "layer of another shape": replace_by_another_shape,
    "layers without biases": without_biases,
    "one vector": into_one_vector,
    "epsilon": lambda net: setattr(net.norm_out, "eps", 0.5),
    "groups": lambda net: setattr(net.norm_out, "groups", 8),
    "activation": lambda net: setattr(net.norm_out, "act", False),
    "heads": lambda net: setattr(net.middle_block[1], "num_heads", 2),
    "layout": lambda net: setattr(net.middle_block[1], "layout", "legacy"),
    "memory format": lambda net: net.to(memory_format=torch.contiguous_format),
    "no gradients": lambda net: net.requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
def test_native_notices(change):
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    assert agrees(compiled, net, x, t)
    CHANGES[change](net)
    assert agrees(compiled, net, x, t)


def test_native_notices_changes_of_inference_tensors():
    """They have no version to look at."""
    with torch.inference_mode():
        net = network("ho")
        compiled = fd.compile(net)
        x, t, _ = inputs(net)
        before = compiled(x, t)
        net.conv_out.bias.add_(1)
        assert relative(compiled(x, t), before.double() + 1) < ENGINE_NETWORK


def test_native_keeps_what_did_not_change():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    compiled(x, t)
    packed, generation = compiled.weights(16, 16), compiled.generation
    net.requires_grad_(False).train()
    net.zero_grad()
    compiled(x, t)
    assert compiled.weights(16, 16) is packed
    assert compiled.generation == generation


def test_native_keeps_its_weights_when_an_attribute_is_added():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    compiled(x, t)
    packed = compiled.weights(16, 16)
    net.middle_block[0].note = "an attribute that no instruction reads"
    compiled(x, t)
    assert compiled.weights(16, 16) is packed


def test_a_hook_that_moves_to_another_module_is_noticed():
    net = network("ho")
    watch = Watch()
    hook = net.conv_out.register_forward_hook(lambda *_: None)
    watch.remember(net)
    assert watch.look(net) == "nothing"
    hook.remove()
    net.norm_out.register_forward_hook(lambda *_: None)
    assert watch.look(net) == "structure"


def test_a_watch_does_not_keep_its_network():
    net = network("ho")
    watch = Watch()
    watch.remember(net)
    seen = weakref.ref(net)
    del net
    gc.collect()
    assert seen() is None


def test_sample_sees_single_numbers_that_no_version_counts():
    net = network("ho")
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 2)
    options = {"shape": (2, 3, 16, 16), "progress": False}
    compiled = fd.compile(net)
    before = [fd.sample(model, table, runner="native", **options) for model in (net, compiled)]
    assert torch.equal(*before)
    # Not among the numbers that are looked at in every call.
    net.output_blocks[-1][0].conv2.weight.data[5, 7, 1, 1] += 1
    after = [
        fd.sample(model, table, runner=r, **options)
        for model, r in ((net, "native"), (compiled, "native"), (net, "eager"))
    ]
    assert torch.equal(after[0], after[1])
    assert (after[0] - after[2]).abs().max() < FLOAT32_RUN
    assert (after[0] - before[0]).abs().max() > 1e-3


def test_repack_sees_everything():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    compiled(x, t)
    net.output_blocks[-1][0].conv2.weight.data[5, 7, 1, 1] += 1
    compiled.repack()
    assert agrees(compiled, net, x, t)


def test_sample_notices_weights_that_a_callback_changes():
    table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 6)
    results = {}

    def change(seen):
        if seen.row == 2:
            with torch.no_grad():
                net.time_embed[0].weight.mul_(2)
                net.conv_out.weight.mul_(2)

    for runner in ("eager", "native"):
        net = network("ho")
        results[runner] = fd.sample(net, table, shape=(2, 3, 16, 16), runner=runner, callback=change, progress=False)
    assert (results["native"] - results["eager"]).abs().max() < FLOAT32_RUN * float(results["eager"].abs().max())


def add_a_hook(net):
    net.middle_block[1].register_forward_hook(lambda *_: None)


def replace_forward(net):
    net.conv_out.forward = lambda x: x


def replace_embed(net):
    net.embed = lambda t, y=None: torch.zeros(len(t), 128)


def replace_skip(net):
    net.middle_block[2].skip = nn.AvgPool2d(1)


def replace_dropout(net):
    net.middle_block[0].dropout = nn.Sequential(nn.Conv2d(64, 64, 1))


def lengthen_time(net):
    net.time_embed.extend([nn.SiLU(), nn.Linear(128, 128)])


def replace_weight(net):
    net.norm_out.weight = nn.Parameter(torch.ones(1))


UNSUPPORTED = {
    "hook": (add_a_hook, r"hooks, and middle_block\.1 has one"),
    "forward": (replace_forward, r"conv_out \(Conv3x3\) with another forward"),
    "embed": (replace_embed, r"the network \(UNet\) with another embed"),
    "module": (replace_skip, r"middle_block\.2\.skip \(AvgPool2d\)"),
    "dropout": (replace_dropout, r"middle_block\.0\.dropout \(Sequential\)"),
    "parametrised": (
        lambda net: nn.utils.parametrizations.weight_norm(net.middle_block[0].conv1),
        r"middle_block\.0\.conv1 \(ParametrizedConv3x3\)",
    ),
    "spectral norm": (lambda net: nn.utils.spectral_norm(net.conv_out), "conv_out has one"),
    "time": (lengthen_time, "time_embed: Sequential"),
    "padding": (
        lambda net: setattr(net, "conv_out", nn.Conv2d(32, 3, 3, padding=1, padding_mode="circular")),
        "conv_out: Conv2d.*circular",
    ),
    "dilation": (
        lambda net: setattr(net, "conv_out", nn.Conv2d(32, 3, 3, padding=2, dilation=2)),
        "conv_out: Conv2d.*dilation",
    ),
    "kernel": (lambda net: setattr(net, "conv_out", nn.Conv2d(32, 3, 5, padding=2)), "conv_out: Conv2d"),
    "channels": (
        lambda net: setattr(net, "conv_out", nn.Conv2d(32, 6, 3, padding=1)),
        "conv_out makes 6 channels, and the configuration says 3",
    ),
    "shape": (replace_weight, r"norm_out\.weight of shape \[32\], got \[1\]"),
    "double": (lambda net: net.double(), r"time_embed\.0\.weight is torch\.float64 on cpu"),
    "half a network": (lambda net: net.middle_block.bfloat16(), r"middle_block\.0\.norm1\.weight is torch\.bfloat16"),
    "device": (lambda net: net.to("meta"), "torch.float32 on meta"),
}


@pytest.mark.parametrize("change", UNSUPPORTED)
def test_native_names_what_it_cannot_run(change):
    """At once, and where the network becomes such after it was compiled."""
    apply, message = UNSUPPORTED[change]
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    compiled(x, t)
    apply(net)
    with pytest.raises(Unsupported, match=message):
        compiled(x, t)
    with pytest.raises(Unsupported, match=message):
        fd.compile(net)


def test_native_recovers_when_a_hook_goes():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    expected = compiled(x, t)
    for register in (net.conv_out.register_forward_hook, nn.modules.module.register_module_forward_hook):
        handle = register(lambda *_: None)
        with pytest.raises(Unsupported, match="does not call hooks"):
            compiled(x, t)
        handle.remove()
        assert torch.equal(compiled(x, t), expected)
