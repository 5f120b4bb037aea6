"""A GPU's eager way past the dispatcher: what takes it, and that its gradients are those of the ops."""

import copy

import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops, samplers
from fastdiff.ops import _dispatch
from fastdiff.ops.table_state import TableState
from support.tolerances import FLOAT32_SUM
from support.triton_cases import images


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    """Under the interpreter, CPU tensors for a GPU's; a CPU's own short ways closed."""
    monkeypatch.setattr(_dispatch, "on_gpu", lambda x: True)
    monkeypatch.setattr(_dispatch, "on_cpu", lambda x: False)
    monkeypatch.setattr(ops._group_norm_act, "has_extension", lambda: False)


@pytest.fixture
def launched(monkeypatch):
    """Names of the ops whose launcher ran."""
    names = []
    for op in _dispatch._OPS.values():
        if op.kernel is None:
            continue
        launch = _dispatch._launcher(op)

        def recorded(call, launch=launch, name=op.name):
            names.append(name)
            return launch(call)

        monkeypatch.setattr(op, "launch", recorded)
    return names


def norm_inputs(device, *, requires_grad=False):
    x = images((2, 8, 5, 3), device, layout="nhwc")
    vectors = [images((8,), device, seed=n) + 1 for n in (1, 2)]
    modulation = [images((2, 8), device, seed=n) for n in (3, 4, 5)]
    return [v.detach().clone().requires_grad_(requires_grad) for v in (x, *vectors, *modulation)]


def norm(x, weight, bias, scale, shift, time, implementation="auto"):
    return ops.group_norm_act(
        x, weight, bias, 2, scale=scale, shift=shift, added_time=time, implementation=implementation
    )


def test_dispatch_calls_a_launcher_where_nobody_looks(device, launched):
    inputs = norm_inputs(device)
    y = norm(*inputs)
    assert launched == ["group_norm_act"]
    assert torch.allclose(y, norm(*inputs, "reference"), rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_dispatch_has_the_gradients_of_the_op(device, launched):
    grads = []
    for implementation in ("auto", "reference"):
        inputs = norm_inputs(device, requires_grad=True)
        y = norm(*inputs, implementation)
        grads.append(torch.autograd.grad(y, inputs, torch.cos(torch.arange(y.numel(), device=device)).view(y.shape)))
    assert launched == ["group_norm_act", "group_norm_act_backward"]
    for ours, theirs in zip(*grads, strict=True):
        assert torch.allclose(ours, theirs, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_dispatch_gives_only_the_gradients_that_are_wanted(device, launched):
    x, weight, *rest = norm_inputs(device)
    weight = torch.nn.Parameter(weight)
    norm(x, weight, *rest).sum().backward()
    assert weight.grad is not None
    assert all(v.grad is None for v in (x, *rest))
    with torch.no_grad():
        assert not norm(x, weight, *rest).requires_grad
    assert launched == ["group_norm_act", "group_norm_act_backward", "group_norm_act"]


def test_dispatch_of_a_second_derivative_is_refused(device):
    inputs = norm_inputs(device, requires_grad=True)
    (grad,) = torch.autograd.grad(norm(*inputs).sum(), inputs[:1], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


class Subclass(torch.Tensor):
    pass


def with_negative_bit(x):
    return torch._neg_view(-x)


@pytest.mark.parametrize("look", [lambda x: x.as_subclass(Subclass), with_negative_bit], ids=["subclass", "negated"])
def test_dispatch_leaves_other_tensors_to_the_dispatcher(device, launched, look):
    x, *rest = norm_inputs(device)
    expected = norm(x, *rest, "reference")
    assert torch.allclose(norm(look(x), *rest), expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    assert not launched or device.type == "cuda"


def test_dispatch_shows_an_op_to_a_profiler(device, launched):
    inputs = norm_inputs(device)
    with torch.profiler.profile() as profile:
        norm(*inputs)
    assert any("group_norm_act" in event.key for event in profile.key_averages())


def test_dispatch_runs_the_reference_in_float64(device, launched):
    inputs = [v.double() for v in norm_inputs(device)]
    assert norm(*inputs).dtype == torch.float64
    assert not launched


def test_dispatch_has_gradients_of_noising_and_of_losses(device, launched):
    diffusion = Diffusion(NoiseSchedule.linear(50))
    table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=device)
    t = torch.tensor([3, 40], device=device)
    grads = []
    for implementation in ("auto", "reference"):
        x0 = images((2, 3, 4, 5), device).requires_grad_()
        x_t, target = ops.diffuse(x0, t, table, seed=3, implementation=implementation)
        (grad,) = torch.autograd.grad(ops.mse(x_t, target, implementation=implementation).sum(), x0)
        grads.append(grad)
    assert launched == ["diffuse", "mse", "mse_backward"]
    assert torch.allclose(*grads, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_dispatch_of_a_tables_row(device, launched):
    table = samplers.ddpm(Diffusion(NoiseSchedule.linear(50)), 10)
    x, m = images((2, 3, 4, 5), device), images((2, 3, 4, 5), device, seed=1)
    with torch.no_grad():
        found, _ = TableState(table).step(3, x, m, seed=7)
        expected = ops.step(x, m, ops.table_rows(table, device), 3, seed=7, implementation="reference")
    assert torch.allclose(found, expected, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    assert launched == (["step"] if device.type == "cuda" else launched)


def test_dispatch_of_copies_is_that_of_the_original(device, launched):
    """A copied module's parameters are parameters."""
    module = torch.nn.GroupNorm(2, 8).to(device)
    x = images((2, 8, 5, 3), device)
    for layer in (module, copy.deepcopy(module)):
        ops.group_norm_act(x, layer.weight, layer.bias, 2).sum().backward()
        assert layer.weight.grad is not None
    assert launched == ["group_norm_act", "group_norm_act_backward"] * 2
