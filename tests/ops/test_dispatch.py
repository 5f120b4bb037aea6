"""The ops through PyTorch's dispatcher: opcheck, compiled, under autocast, and without the extension."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fastdiff import (
    CoefficientTable,
    ops,
    samplers,
)
from fastdiff.calls import Conv3x3Call
from fastdiff.ops import _dispatch
from support.op_cases import (
    DIFFUSION,
    full_table,
    images,
    noising_table,
)

ROOT = Path(__file__).parents[2]


def test_ops_pass_opcheck():
    x = images((2, 3, 4, 4))
    rows = ops.table_rows(full_table())
    plain = ops.table_rows(CoefficientTable({"t": [3.0, 2.0, 1.0, 0.0], "evaluate": [0] * 4, "cx": [0.5] * 4}))
    ids, row = torch.arange(2), torch.tensor([3])
    wide = images((2, 6, 4, 4))
    slots = (torch.zeros_like(x), torch.zeros(3, *x.shape), torch.zeros_like(x), torch.zeros_like(x))
    torch.library.opcheck(torch.ops.fastdiff.step.default, (x, wide, rows, row, None, ids, 5, True, *slots))
    torch.library.opcheck(
        torch.ops.fastdiff.step.default, (x, None, plain, row, x.clone(), ids, 5, False, None, None, None, slots[3])
    )
    t = torch.tensor([3, 99])
    for image in (
        x.clone().requires_grad_(),
        x.contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4).byte(),
    ):
        for want_target in (True, False):
            arguments = (image, t, noising_table(), None, ids, row, -1, 2, 256, torch.float32, want_target)
            torch.library.opcheck(torch.ops.fastdiff.diffuse.default, arguments)


def test_ops_compile_without_graph_breaks():
    table = noising_table()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, t):
        return ops.diffuse(x, t, table, seed=3, row=1)

    x, t = images((2, 3, 4, 4)), torch.tensor([0, 50])
    for ours, expected in zip(run(x, t), ops.diffuse(x, t, table, seed=3, row=1), strict=True):
        assert torch.equal(ours, expected)


def test_ops_compile_on_a_gpu_as_they_are_registered(monkeypatch):
    """A compiler gets the op and not a launcher, with its gradient."""
    monkeypatch.setattr(_dispatch, "on_gpu", lambda x: True)
    monkeypatch.setattr(ops._group_norm_act, "_is_plain", lambda call: False)
    x, weight, bias = images((2, 8, 4, 4)), torch.ones(8, requires_grad=True), torch.zeros(8)

    def run(x, weight, bias):
        return ops.group_norm_act(x, weight, bias, 2).square().sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    grads = [torch.autograd.grad(f(x, weight, bias), weight)[0] for f in (compiled,)]
    monkeypatch.undo()
    grads += torch.autograd.grad(run(x, weight, bias), weight)
    assert torch.equal(*grads)


@pytest.mark.parametrize("compiled", [False, True])
def test_ops_keep_their_types_under_autocast(compiled):
    """The table and the state are float32, and a network under autocast gives bfloat16."""
    rows, table = ops.table_rows(samplers.ddpm(DIFFUSION, 10)), noising_table()
    layer = torch.nn.Conv2d(3, 3, 1)
    x, t, row = images((2, 3, 4, 4)), torch.tensor([3, 99]), torch.tensor([4])

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            x_t, target = ops.diffuse(x, t, table, seed=3, row=1)
            m = layer(x_t)
            return x_t, target, m, ops.step(x, m.detach(), rows, row, seed=3)

    results = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(x)
    assert [v.dtype for v in results] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    expected = ops.step(x, results[2].detach(), rows, row, seed=3)
    assert torch.equal(results[3], expected)
    assert torch.equal(results[0], ops.diffuse(x, t, table, seed=3, row=1)[0])


def test_ops_run_the_reference_with_one_warning_when_nothing_is_built():
    """Hide the extension; results stay right, one warning names the build command, and asking by name raises."""
    code = """
import sys, warnings
sys.modules["fastdiff._C"] = None
import torch
from fastdiff import Diffusion, NoiseSchedule, ops
table = torch.tensor(Diffusion(NoiseSchedule.cosine(10)).noising_table(), dtype=torch.float32)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        ops.diffuse(torch.zeros(1, 1, 2, 2), torch.tensor([3]), table)
assert [str(w.message) for w in seen if "build it with" in str(w.message)].__len__() == 1, seen
try:
    ops.diffuse(torch.zeros(1, 1, 2, 2), torch.tensor([3]), table, implementation="cpu")
except RuntimeError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("no error")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_ops_extension_is_loaded_here():
    """The suite is about the compiled kernels; a suite that silently ran the reference would prove nothing."""
    assert ops.has_extension(), ops.EXTENSION_ERROR


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs Triton: the extra 'triton'")
def test_ops_refuse_triton_without_a_gpu_or_its_interpreter():
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET=1"):
        ops.posterior_mean(
            torch.zeros(3, 2), torch.zeros(3, 2), torch.tensor([0, 1, 2]), torch.zeros(20, 4), implementation="triton"
        )


def test_ops_have_an_implementation_on_a_gpu_where_they_say_so():
    """A key without a launcher raises; without a key a GPU runs the reference, as conv3x3 does, which is cuDNN's."""
    for op in _dispatch._OPS.values():
        has_key = torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{op.name}", "CUDA")
        assert has_key == (op.kernel is not None), op.name
        if op.kernel is not None:
            text = (ROOT / "kernels" / f"{op.kernel}.py").read_text()
            assert f"\ndef launch_{op.name}(" in text, op.name


def test_eager_calls_on_the_cpu_go_past_the_dispatcher_unless_somebody_looks_on(monkeypatch):
    op, calls = _dispatch._OPS[Conv3x3Call], []
    run = op.cpu
    monkeypatch.setattr(op, "cpu", lambda call: calls.append(call) or run(call))
    x, weight = images((1, 16, 4, 4)).requires_grad_(), torch.randn(16, 16, 3, 3)
    by_function = ops.conv3x3(x, weight, None)
    with torch.no_grad():
        plain = ops.conv3x3(x, weight, None)
    assert len(calls) == 2
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]):
        by_dispatcher = ops.conv3x3(x, weight, None)
    assert len(calls) == 2
    assert torch.equal(by_function, plain)
    assert torch.equal(by_function, by_dispatcher)
    gradients = [torch.autograd.grad(y.square().sum(), x)[0] for y in (by_function, by_dispatcher)]
    assert torch.equal(*gradients)


def test_ops_without_a_triton_kernel_say_so():
    call = Conv3x3Call(torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3), None, None)
    with pytest.raises(RuntimeError, match="conv3x3 has no Triton kernel: leave implementation at 'auto'"):
        _dispatch.dispatch(call, "triton")
