"""What a compiled network is asked to bear: bad input, threads, processes, copies, other defaults, little memory."""

import copy
import dataclasses
import gc
import os
import pickle
import re
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from fastdiff.engine import native as engine_native
from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.pack import CODE_FIELDS
from support.engine_networks import inputs, network
from support.tolerances import FLOAT32_DEEP, FLOAT32_RUN, FLOAT32_SUM

TABLE = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 3)


def in_a_process(code, **options):
    """A script beside the tests, that imports what they do; its lines and its exit code."""
    start = (
        "import sys; sys.path.insert(0, 'tests')\nimport torch, fastdiff as fd\nfrom support.engine_networks import *\n"
    )
    return subprocess.run(
        [sys.executable, "-c", start + "torch.set_num_threads(2)\n" + code],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=200,
        check=False,
        **options,
    )


REFUSED = {
    "batch 0": ({"batch": 0}, "batch must be an int, at least 1, got 0"),
    "batch 2.0": ({"batch": 2.0}, "batch must be an int, at least 1, got 2.0"),
    "batch True": ({"batch": True}, "batch must be an int, at least 1, got True"),
    "odd size": ({"size": 7}, "positive multiples of 2, got 7 x 7"),
    "odd width": ({"batch": 1, "size": (8, 7)}, "positive multiples of 2, got 8 x 7"),
    "negative size": ({"size": -2}, "positive multiples of 2, got -2 x -2"),
    "one number in a tuple": ({"size": (8,)}, "one whole number, or two: height and width; got (8,)"),
    "size in words": ({"size": "8x8"}, "one whole number, or two: height and width; got '8x8'"),
    "fractional size": ({"size": 8.0}, "one whole number, or two: height and width; got 8.0"),
    "precision": ({"precision": "half"}, "precision must be 'fast', 'strict' or 'bfloat16', got 'half'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_compile_refuses(case):
    options, message = REFUSED[case]
    with pytest.raises(ValueError, match=re.escape(message)):
        fd.compile(network("ho"), **options)


@pytest.mark.parametrize("size", [8, (8, 24), [24, 8]], ids=str)
def test_compile_takes_sizes(size):
    net = network("ho")
    compiled = fd.compile(net, batch=2, size=size)
    height, width = (size, size) if isinstance(size, int) else size
    assert [key[:3] for key in compiled._room.plans] == [(2, height, width)]
    x, t, _ = inputs(net, 2, height, width)
    assert compiled(x, t).shape == x.shape
    assert len(compiled._room.plans) == 1


def test_call_refuses():
    net = network("adm")
    x, t, y = inputs(net)
    compiled = fd.compile(net)
    bad = {
        r"x must have shape \[B, 3, H, W\]": (x[:, :1], t, y),
        "height and width of x must be positive multiples of 2": (x[..., :15], t, y),
        r"t must have shape \[3\]": (x, t[:2], y),
        "t must be int64 or float32": (x, t.half(), y),
        "needs labels y": (x, t, None),
        "y must lie in": (x, t, y + 7),
        "x must be floating": (x.long(), t, y),
    }
    for message, arguments in bad.items():
        with pytest.raises(ValueError, match=message):
            compiled(*arguments)
    for arguments, name in (((x, 3, y), "t"), ((x, 3.0, y), "t"), ((x, t, 1), "y"), ((x.numpy(), t, y), "x")):
        with pytest.raises(TypeError, match=f"{name} must be a tensor"):
            compiled(*arguments)
    with pytest.raises(RuntimeError, match="no gradients, and x requires one"):
        compiled(x.requires_grad_(), t, y)
    with torch.no_grad():
        compiled(x, t, y)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("batch", [0, 2])
def test_call_takes_and_gives_what_the_module_does(dtype, batch):
    net = network("ho")
    x, t, _ = inputs(net, 2)
    x, t = x[:batch].to(dtype), t[:batch].double()
    with torch.no_grad():
        expected = net(x, t)
    actual = fd.compile(net)(x, t)
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    torch.testing.assert_close(actual, expected, rtol=FLOAT32_DEEP, atol=FLOAT32_DEEP)


def test_call_takes_any_strides_and_times():
    net = network("ho")
    x, _, _ = inputs(net)
    compiled = fd.compile(net)
    t = torch.tensor([0.5, 999.0, 3.25])
    expected = compiled(x, t)
    wide = torch.zeros(3, 6, 32, 16)
    wide[:, ::2, ::2] = x
    transposed = x.transpose(2, 3).contiguous().transpose(2, 3)
    for same in (wide[:, ::2, ::2], transposed, x.contiguous(memory_format=torch.channels_last)):
        before = same.clone()
        assert torch.equal(compiled(same, t), expected)
        assert torch.equal(same, before)
    # A sample's time is its own.
    alone = torch.cat([compiled(x[n : n + 1], t[n : n + 1]) for n in range(3)])
    assert torch.equal(alone, expected)
    assert torch.equal(compiled(x[:1].expand(3, -1, -1, -1), t[:1].expand(3))[2], expected[0])


def test_results_are_memory_of_their_own():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    first = compiled(x, t)
    kept = first.clone()
    compiled(2 * x, t)
    assert torch.equal(first, kept)


def test_training_mode_makes_no_difference():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    expected = compiled(x, t)
    net.train()
    assert torch.equal(compiled(x, t), expected)
    sampled = fd.sample(net, TABLE, shape=(2, 3, 8, 8), runner="native", progress=False)
    assert net.training
    assert torch.equal(fd.sample(net.eval(), TABLE, shape=(2, 3, 8, 8), runner="native", progress=False), sampled)


def test_a_plan_without_room_is_refused():
    net = network("ho")
    compiled = NativeNetwork(net)
    prepared = compiled.prepare(2, 16, 16)
    x, t, _ = inputs(net, 2)
    x = x.contiguous(memory_format=torch.channels_last)
    prepared = dataclasses.replace(prepared, scratch=torch.empty(8))
    places = (*prepared.memory, torch.empty_like(x))
    with pytest.raises(RuntimeError, match="scratch is for fewer"):
        torch.ops.fastdiff.plan_forward(x, prepared.code, compiled.weights(16, 16), compiled.times(t), *places)


def test_sizes_share_weights_where_they_can():
    """From 16x16 on, both levels of the network are of one algorithm; at 8x8 they are not."""
    net = network("ho")
    compiled = fd.compile(net)
    results = {size: compiled(*inputs(net, 2, *size)[:2]) for size in ((16, 16), (16, 24), (8, 8))}
    assert compiled.weights(16, 16) is compiled.weights(16, 24)
    assert len(compiled._packed) == 1
    for size, expected in results.items():
        assert torch.equal(compiled(*inputs(net, 2, *size)[:2]), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_other_default_types_make_no_difference(dtype):
    net = network("adm")
    x, t, y = inputs(net)
    expected = fd.compile(net)(x, t, y)
    sampled = fd.sample(net, TABLE, shape=(3, 3, 8, 8), model_kwargs={"y": y}, runner="native", progress=False)
    fresh = copy.deepcopy(net)
    torch.set_default_dtype(dtype)
    try:
        assert torch.equal(fd.compile(fresh)(x, t, y), expected)
        again = fd.sample(fresh, TABLE, shape=(3, 3, 8, 8), model_kwargs={"y": y}, runner="native", progress=False)
        assert torch.equal(again, sampled)
    finally:
        torch.set_default_dtype(torch.float32)


def test_other_default_devices_make_no_difference():
    net = network("adm")
    x, t, y = inputs(net)
    expected = fd.compile(net)(x, t, y)
    with torch.device("meta"):
        assert torch.equal(fd.compile(net)(x, t, y), expected)


def test_autocast_makes_no_difference():
    net = network("ho")
    x, t, _ = inputs(net)
    compiled = fd.compile(net)
    expected = compiled(x, t)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(compiled(x, t), expected)


def test_inference_mode_comes_and_goes():
    net = network("ho")
    x, t, _ = inputs(net)
    with torch.inference_mode():
        compiled = fd.compile(net)
        expected = compiled(x, t).clone()
        inside = fd.sample(net, TABLE, shape=(2, 3, 8, 8), runner="native", progress=False)
    assert torch.equal(compiled(x, t), expected)
    outside = fd.sample(net, TABLE, shape=(2, 3, 8, 8), runner="native", progress=False)
    assert torch.equal(inside, outside)


def test_threads_may_share_a_network():
    net = network("adm")
    x, t, y = inputs(net)
    compiled = fd.compile(net)
    expected = [compiled(x * (n + 1), t, y) for n in range(4)]
    options = {"shape": (3, 3, 16, 16), "model_kwargs": {"y": y}, "runner": "native", "progress": False}
    samples = [fd.sample(compiled, TABLE, seed=n, **options) for n in range(4)]
    wrong = []

    def work(n):
        torch.set_num_threads(1 + n % 2)
        for _ in range(10):
            if not torch.equal(compiled(x * (n + 1), t, y), expected[n]):
                wrong.append(n)
            if not torch.equal(fd.sample(compiled, TABLE, seed=n, **options), samples[n]):
                wrong.append(10 + n)

    before = torch.get_num_threads()
    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    torch.set_num_threads(before)
    assert not wrong


def test_a_callback_may_sample_with_the_same_network():
    net = network("ho")
    options = {"shape": (2, 3, 16, 16), "runner": "native", "progress": False}
    expected = fd.sample(net, TABLE, **options)
    inner = []
    result = fd.sample(net, TABLE, callback=lambda _: inner.append(fd.sample(net, TABLE, **options)), **options)
    assert torch.equal(result, expected)
    assert all(torch.equal(other, expected) for other in inner)
    assert len(inner) == 3


def test_a_callback_may_raise():
    net = network("ho")
    options = {"shape": (2, 3, 16, 16), "runner": "native", "progress": True}
    expected = fd.sample(net, TABLE, **options)

    def stop(seen):
        if seen.row == 1:
            raise LookupError("enough")

    with pytest.raises(LookupError, match="enough"):
        fd.sample(net, TABLE, callback=stop, **options)
    assert torch.equal(fd.sample(net, TABLE, **options), expected)


def test_generators_are_left_alone():
    net = network("ho")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    fd.sample(net, TABLE, shape=(2, 3, 16, 16), runner="native", progress=False)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))], ids=["copy", "pickle"])
def test_compiled_networks_can_be_copied(duplicate):
    net = network("adm")
    x, t, y = inputs(net)
    compiled = fd.compile(net, precision="strict")
    expected = compiled(x, t, y)
    other = duplicate(compiled)
    assert other.unet is not net
    assert other.precision == "strict"
    assert torch.equal(other(x, t, y), expected)
    with torch.no_grad():
        net.conv_out.bias.add_(1)
    assert torch.equal(other(x, t, y), expected)


def test_a_network_that_was_sampled_is_like_any_other():
    net = network("ho")
    fd.sample(net, TABLE, shape=(2, 3, 8, 8), runner="native", progress=False)
    assert set(vars(net)) == set(vars(network("ho")))
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(other.conv_out.weight, net.conv_out.weight)


def test_memory_goes_with_the_network():
    net = network("ho")
    fd.sample(net, TABLE, shape=(2, 3, 8, 8), runner="native", progress=False)
    packed = weakref.ref(engine_native._cache[net]["fast", "normal"].weights(8, 8))
    compiled = fd.compile(net)
    gc.disable()
    try:
        here = weakref.ref(net)
        del net
        assert here() is compiled.unet
        del compiled
        assert here() is None
        assert packed() is None
    finally:
        gc.enable()


def test_a_compiled_network_samples_with_its_precision():
    net = network("ho")
    strict, fast = fd.compile(net, precision="strict"), fd.compile(net)
    options = {"shape": (2, 3, 16, 16), "progress": False}
    results = {runner: fd.sample(strict, TABLE, runner=runner, **options) for runner in ("auto", "native", "eager")}
    assert torch.equal(results["auto"], results["native"])
    assert (results["eager"] - results["native"]).abs().max() < FLOAT32_SUM
    assert torch.equal(fd.sample(fast, TABLE, **options), fd.sample(net, TABLE, **options))
    assert not torch.equal(results["native"], fd.sample(fast, TABLE, **options))


def test_guidance_takes_a_compiled_network():
    net = network("adm")
    y = torch.tensor([1, 2])
    options = {"shape": (2, 3, 16, 16), "model_kwargs": {"y": y}, "progress": False}
    guided = [fd.guidance.ClassifierFreeGuidance(model, {"y": 0}, 2.0) for model in (net, fd.compile(net))]
    eager, native = (fd.sample(model, TABLE, **options) for model in guided)
    assert (eager - native).abs().max() < FLOAT32_RUN


def test_processes_may_be_forked_after_use():
    """As DataLoader's workers are: with one thread."""
    code = """
import os
net = network("ho")
x, t, _ = inputs(net)
compiled = fd.compile(net)
expected = compiled(x, t)
child = os.fork()
if child == 0:
    torch.set_num_threads(1)
    os._exit(0 if torch.equal(compiled(x, t), expected) else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert torch.equal(compiled(x, t), expected)
print("done")
"""
    done = in_a_process(code)
    assert done.stdout == "done\n", done.stderr


def test_too_little_memory_leaves_the_process_usable():
    code = """
import resource
net = network("ho")
x, t, _ = inputs(net, 2)
compiled = fd.compile(net)
expected = compiled(x, t)
table = fd.samplers.ddim(fd.Diffusion(fd.NoiseSchedule.cosine(100)), 2)
sampled = fd.sample(net, table, shape=(2, 3, 16, 16), runner="native", progress=False)
pages = int(open("/proc/self/statm").read().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * 4096 + (256 << 20),) * 2)
big = torch.zeros(1, 3, 16, 16).expand(200_000, -1, -1, -1), torch.zeros(200_000, dtype=torch.int64)
for attempt in range(2):
    for call in (
        lambda: compiled(*big),
        lambda: fd.sample(net, table, shape=(100_000, 3, 32, 32), runner="native", progress=False),
        lambda: fd.compile(net, batch=2_000, size=128),
    ):
        try:
            call()
        except (RuntimeError, MemoryError) as error:
            print(type(error).__name__)
    assert torch.equal(compiled(x, t), expected)
    assert torch.equal(fd.sample(net, table, shape=(2, 3, 16, 16), runner="native", progress=False), sampled)
    net.conv_out.bias.data.add_(1)
    expected = fd.compile(net)(x, t)
    assert torch.equal(compiled(x, t), expected)
    sampled = fd.sample(net, table, shape=(2, 3, 16, 16), runner="native", progress=False)
print("done")
"""
    done = in_a_process(code)
    assert done.stdout == 6 * "RuntimeError\n" + "done\n", done.stdout + done.stderr


def test_ctrl_c_ends_a_program():
    """The signal comes from outside, and the program can go on."""
    code = """
net = network("ho")
table = fd.samplers.ddpm(fd.Diffusion(fd.NoiseSchedule.cosine(4000)))
expected = fd.compile(net)(*inputs(net)[:2])
print("ready", flush=True)
try:
    fd.sample(net, table, shape=(64, 3, 16, 16), runner="native", progress=False)
except KeyboardInterrupt:
    assert torch.equal(fd.compile(net)(*inputs(net)[:2]), expected)
    print("interrupted", flush=True)
"""
    start = (
        "import sys; sys.path.insert(0, 'tests')\nimport torch, fastdiff as fd\nfrom support.engine_networks import *\n"
    )
    start += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    with subprocess.Popen(
        [sys.executable, "-c", start + code], stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        began = time.monotonic()
        os.kill(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "interrupted\n"
        assert time.monotonic() - began < 10
        assert process.wait(60) == 0


def test_engine_needs_the_extension(monkeypatch):
    monkeypatch.setattr(ops, "has_extension", lambda: False)
    with pytest.raises(RuntimeError, match="needs the C\\+\\+ extension"):
        fd.compile(network("ho"))


@pytest.mark.parametrize(
    ("field", "place"), [("target", 1 << 40), ("source", 1 << 40), ("weight", 1 << 40), ("residual", 1 << 62)]
)
def test_a_plan_that_reaches_out_of_its_memory_is_refused(field, place):
    net = network("ho")
    compiled = NativeNetwork(net)
    x, t, _ = inputs(net)
    x = x.contiguous(memory_format=torch.channels_last)
    prepared = compiled.prepare(len(x), 16, 16)
    code, weights, times = prepared.code.clone(), compiled.weights(16, 16), compiled.times(t)
    forward = torch.ops.fastdiff.plan_forward
    with pytest.raises(RuntimeError, match="outside of the arena, the weights or the times"):
        forward(x, code, weights, torch.zeros(1, 0), *prepared.memory, torch.empty_like(x))
    with pytest.raises(RuntimeError, match="outside of the arena, the weights or the times"):
        forward(x, code, weights[:16], times, *prepared.memory, torch.empty_like(x))
    code[:, CODE_FIELDS.index(field)] = place
    with pytest.raises(RuntimeError, match="outside of the arena, the weights or the times") as error:
        forward(x, code, weights, times, *prepared.memory, torch.empty_like(x))
    assert str(Path(__file__).parents[2]) not in str(error.value)
