"""The kernels' cases of the GPU suite: each op against PyTorch's own, on the shapes of the networks it is made for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from gpu_measure import Case, Ceilings, Clock, Inputs, Results, measure
from gpu_tasks import Context, Row, Task
from torch import Tensor

from fastdiff import Diffusion, NoiseSchedule, ops, samplers
from fastdiff.calls import Conv2dFusedCall, DiffuseCall, GroupNormActCall, PosteriorMeanCall, StepCall
from fastdiff.ops.reference import bound as losses
from fastdiff.ops.reference import conv2d_fused as reference_conv
from fastdiff.ops.reference import diffuse as reference_diffuse
from fastdiff.ops.reference import group_norm_act as reference_norm
from fastdiff.ops.reference import posterior_mean as reference_posterior_mean
from fastdiff.ops.reference import step as reference_step
from fastdiff.tensors import split_qkv

T = 1000


class Shapes(NamedTuple):
    """What a section measures.

    Attributes:
        images: Batches of 3x32x32.
        features: Of norms, [B, C, H, W].
        tokens: Of attention: batch, tokens, heads, channels of a head.
        convs: Batch, channels in and out, side of the image.
    """

    images: tuple[int, ...]
    features: tuple[tuple[int, ...], ...]
    tokens: tuple[tuple[int, ...], ...]
    convs: tuple[tuple[int, ...], ...]


BF16 = Shapes(
    images=(1024, 64),
    features=((1, 128, 32, 32), (16, 256, 16, 16), (128, 256, 8, 8), (256, 128, 32, 32)),
    tokens=((16, 256, 1, 256), (128, 256, 1, 256), (128, 64, 6, 64), (16, 256, 1, 512)),
    convs=((1, 128, 128, 32), (128, 128, 128, 32), (128, 256, 256, 16), (128, 256, 256, 8), (128, 256, 256, 4)),
)
FP32 = Shapes(
    images=(1024,),
    features=((16, 256, 16, 16), (128, 128, 32, 32)),
    tokens=((128, 256, 1, 256),),
    convs=((64, 256, 256, 16),),
)
QUICK = Shapes(images=(2,), features=((2, 16, 8, 8),), tokens=((2, 16, 2, 16),), convs=((2, 16, 16, 8),))


def bf16(context: Context) -> Iterator[Task]:
    """The tasks in bfloat16."""
    yield from _tasks(context, QUICK if context.quick else BF16, torch.bfloat16)


def fp32(context: Context) -> Iterator[Task]:
    """The tasks in float32."""
    yield from _tasks(context, QUICK if context.quick else FP32, torch.float32)


def _tasks(context: Context, shapes: Shapes, dtype: torch.dtype) -> Iterator[Task]:
    device = torch.device(context.device)
    clock = Clock(device)
    # cuDNN's best.
    torch.backends.cudnn.benchmark = True
    yield Task("ceilings", lambda: Ceilings.of(device, context.quick).row())

    def run(case: Case) -> Row:
        return measure(case, clock, context.rounds, Ceilings.of(device, context.quick))

    for case in cases(shapes, dtype, device):
        # Without a GPU there is no other precision than float32's own.
        if case.tf32 and not context.on_gpu:
            continue
        name = case.name + ("" if case.tf32 is None else ", TF32" if case.tf32 else ", strict")
        yield Task(name, partial(run, case), warm=partial(_warm, case), seconds=1.0)


def _warm(case: Case) -> None:
    from gpu_measure import precision

    inputs = case.make(0)
    with precision(case.tf32):
        for name, arm in case.arms.items():
            if name.startswith("fastdiff"):
                arm(inputs)
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def cases(shapes: Shapes, dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """All of them; none takes memory before it is measured."""
    make = Maker(dtype, device)
    # Products of float32 numbers in both precisions, each against a peer in the same.
    kinds = (True, False) if dtype == torch.float32 else (None,)
    for shape in shapes.features:
        for backward in (False, True):
            yield _group_norm(make, shape, backward)
    for tf32 in kinds:
        for size in shapes.convs:
            yield _conv(make, *size, tf32)
            yield _plain_conv(make, *size, tf32)
    for batch in shapes.images:
        image = (batch, 3, 8, 8) if shapes is QUICK else (batch, 3, 32, 32)
        yield _step(make, image)
        yield _diffuse(make, image)
        yield _posterior_mean(make, image)
    for tf32 in kinds:
        for size in shapes.tokens:
            for backward in (False, True):
                yield _attention(make, *size, backward, tf32)
    for batch in shapes.images:
        image = (batch, 3, 8, 8) if shapes is QUICK else (batch, 3, 32, 32)
        yield _mse(make, image)
        yield _hybrid(make, image)


class Maker:
    """Makes random tensors: others for each set and each number."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self.on_gpu = device.type == "cuda"

    def __call__(self, shape: tuple[int, ...], of_set: int, number: int, dtype: torch.dtype | None = None) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(100 * of_set + number)
        x = torch.randn(shape, generator=generator, device=self.device, dtype=torch.float32).to(dtype or self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def times(self, batch: int) -> Tensor:
        return torch.arange(batch, device=self.device) * 37 % T


def _name(op: str, shape: tuple[int, ...]) -> str:
    return f"{op} {'x'.join(map(str, shape))}"


def _diffuse(make: Maker, shape: tuple[int, ...]) -> Case:
    table = torch.tensor(Diffusion(NoiseSchedule.linear(T)).noising_table(), dtype=torch.float32, device=make.device)
    ids, row = torch.arange(shape[0], device=make.device), torch.zeros(1, dtype=torch.int64, device=make.device)
    t = make.times(shape[0])

    def exact(inputs: Inputs) -> Results:
        call = DiffuseCall(inputs[0].double(), t, table, None, ids, row, 0, 0, 256, torch.float64, True)
        return reference_diffuse.diffuse(call)

    def plain(inputs: Inputs) -> Results:
        (x0,) = inputs
        z = torch.randn_like(x0)
        c0, c1 = (table[t, i].to(x0.dtype).view(-1, 1, 1, 1) for i in range(2))
        return c0 * x0 + c1 * z, z

    return Case(
        _name("diffuse", shape),
        lambda i: (make(shape, i, 0).clamp(-1, 1),),
        {"fastdiff": lambda inputs: ops.diffuse(inputs[0], t, table, stream=0), "torch": plain},
        exact,
        None,
        make.dtype,
        bytes_moved=3 * _size(shape, make.dtype),
    )


def _step(make: Maker, shape: tuple[int, ...]) -> Case:
    table = samplers.ddpm(Diffusion(NoiseSchedule.linear(T)), T)
    rows, row = ops.table_rows(table, make.device), torch.tensor([500], device=make.device)
    ids = torch.arange(shape[0], device=make.device)
    k = {name: float(table[name][500]) for name in ("px", "pm", "cx", "c0", "s")}

    def exact(inputs: Inputs) -> Results:
        x, m, out = inputs
        call = StepCall(x.double(), m.double(), rows, row, None, ids, 0, False, None, None, None, out)
        return reference_step.step(call)[0]

    def plain(inputs: Inputs) -> Results:
        x, m, _ = inputs
        pred = (k["px"] * x + k["pm"] * m).clamp_(-1, 1)
        return k["cx"] * x + k["c0"] * pred + k["s"] * torch.randn_like(x)

    return Case(
        _name("step", shape),
        lambda i: (make(shape, i, 0), make(shape, i, 1), make(shape, i, 2)),
        {"fastdiff": lambda inputs: ops.step(*inputs[:2], rows, row, out=inputs[2]), "torch": plain},
        exact,
        None,
        make.dtype,
        bytes_moved=3 * _size(shape, make.dtype),
    )


def _posterior_mean(make: Maker, shape: tuple[int, ...]) -> Case:
    t = make.times(shape[0])
    table = torch.tensor(Diffusion(NoiseSchedule.linear(T)).posterior_table(), dtype=torch.float32, device=make.device)

    def exact(inputs: Inputs) -> Results:
        x, m = inputs
        return reference_posterior_mean.posterior_mean(
            PosteriorMeanCall(x.double(), m.double(), t, table.double(), 1.0)
        )

    def plain(inputs: Inputs) -> Results:
        x, m = inputs
        c0, c1, c2, c3 = (table[t, i].view(-1, 1, 1, 1) for i in range(4))
        return (c0 * (c2 * x + c3 * m).clamp(-1, 1) + c1 * x).to(x.dtype)

    return Case(
        _name("posterior_mean", shape),
        lambda i: (make(shape, i, 0), make(shape, i, 1)),
        {"fastdiff": lambda inputs: ops.posterior_mean(*inputs, t, table, clip=1.0), "torch": plain},
        exact,
        "torch",
        make.dtype,
        bytes_moved=3 * _size(shape, make.dtype),
    )


def _gradient(loss: Callable[..., Tensor], output: Tensor, *others: Tensor) -> Tensor:
    return torch.autograd.grad(loss(output, *others), output)[0]


def _exact_gradient(loss: Callable[..., Tensor], inputs: Inputs) -> Tensor:
    output, *others = inputs
    return _gradient(loss, output.detach().double().requires_grad_(), *(v.double() for v in others))


def _mse(make: Maker, shape: tuple[int, ...]) -> Case:
    """With its gradient, of a float32 target."""

    def plain(m: Tensor, target: Tensor) -> Tensor:
        return losses.mse(m, target.to(m.dtype if m.dtype == torch.float64 else torch.float32)).sum()

    return Case(
        _name("mse with gradient", shape),
        lambda i: (make(shape, i, 0).requires_grad_(), make(shape, i, 1, torch.float32)),
        {
            "fastdiff": lambda inputs: _gradient(lambda m, target: ops.mse(m, target).sum(), *inputs),
            "torch": lambda inputs: _gradient(plain, *inputs),
        },
        partial(_exact_gradient, plain),
        "torch",
        make.dtype,
        bytes_moved=3 * _size(shape, make.dtype) + 2 * _size(shape, torch.float32),
    )


def _hybrid(make: Maker, shape: tuple[int, ...]) -> Case:
    """With its gradient, of float32 images."""
    diffusion = Diffusion(NoiseSchedule.linear(T), variance="learned_range")
    t = make.times(shape[0])
    table = losses.BoundTable.build(diffusion, make.device)
    rows = table.rows()
    tables = {torch.float64: losses.BoundTable.from_rows(rows.double(), True)}
    wide = (shape[0], 2 * shape[1], *shape[2:])

    def inputs(i: int) -> Inputs:
        target = make(shape, i, 1, torch.float32)
        x0 = torch.round(target.clamp(-1, 1) * 127.5 + 127.5) / 127.5 - 1
        return make(wide, i, 0).requires_grad_(), target, x0, make(shape, i, 2, torch.float32)

    def plain(m: Tensor, *images: Tensor) -> Tensor:
        kind = torch.float64 if m.dtype == torch.float64 else torch.float32
        terms = losses.hybrid(m, *(v.to(kind) for v in images), t, tables.get(kind, table))
        return (terms.mse + terms.vlb).sum()

    def fused(m: Tensor, *images: Tensor) -> Tensor:
        simple, bound = ops.hybrid_loss(m, *images, t, rows)
        return (simple + T * bound).sum()

    return Case(
        _name("hybrid loss with gradient", shape),
        inputs,
        {"fastdiff": lambda inputs: _gradient(fused, *inputs), "torch": lambda inputs: _gradient(plain, *inputs)},
        partial(_exact_gradient, plain),
        "torch",
        make.dtype,
        bytes_moved=3 * _size(wide, make.dtype) + 6 * _size(shape, torch.float32),
    )


def _group_norm(make: Maker, shape: tuple[int, ...], backward: bool) -> Case:
    """The peer's weights are of x's type already: casting them is not its kernel's work."""
    groups = min(32, shape[1] // 4)

    def inputs(i: int) -> Inputs:
        weights = [make(shape[1:2], i, number, torch.float32) for number in (1, 2)]
        values = [make(shape, i, 0), *weights, *(v.to(make.dtype) for v in weights)]
        return (*(v.detach().clone().requires_grad_(backward) for v in values), make(shape, i, 3))

    def run(norm: Any, grad: Tensor, *values: Tensor) -> Any:
        with torch.set_grad_enabled(backward):
            y = norm(*values)
        return torch.autograd.grad(y, values, grad.to(y.dtype)) if backward else y

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.group_norm_act(x, weight, bias, groups, eps=1e-6)

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight, bias, 1e-6))

    def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        call = GroupNormActCall(x, *(None,) * 4, weight, bias, None, None, groups, 1e-6, True)
        return reference_norm.group_norm_act(call)[0]

    def exact(inputs: Inputs) -> Any:
        return run(oracle, inputs[5], *(v.detach().double().requires_grad_(backward) for v in inputs[:3]))

    return Case(
        _name("group_norm_act with gradient" if backward else "group_norm_act", shape),
        inputs,
        {
            "fastdiff": lambda inputs: run(ours, inputs[5], *inputs[:3]),
            "torch": lambda inputs: run(plain, inputs[5], inputs[0], *inputs[3:5]),
        },
        exact,
        "torch",
        make.dtype,
        bytes_moved=(5 if backward else 2) * _size(shape, make.dtype),
    )


def _attention(
    make: Maker, batch: int, tokens: int, heads: int, head_dim: int, backward: bool, tf32: bool | None
) -> Case:
    width = heads * head_dim

    def run(implementation: Any, inputs: Inputs) -> Tensor:
        qkv, grad = inputs
        with torch.set_grad_enabled(backward):
            out = ops.attention(qkv, heads, layout="legacy", implementation=implementation)
        return torch.autograd.grad(out, qkv, grad)[0] if backward else out

    def exact(inputs: Inputs) -> Tensor:
        wide = inputs[0].detach().double().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            q, k, v = split_qkv(wide, heads, "legacy")
            out = ((q @ k.transpose(2, 3)) * head_dim**-0.5).softmax(3) @ v
            out = out.transpose(1, 2).flatten(2)
        return torch.autograd.grad(out, wide, inputs[1].double())[0] if backward else out

    # Without a GPU there is no Triton kernel to run.
    ours = "triton" if make.on_gpu else "auto"
    size = _size((batch, tokens, width), make.dtype)
    return Case(
        f"attention {'with gradient ' if backward else ''}{batch}x{tokens}, {heads} heads of {head_dim}",
        lambda i: (
            make((batch, tokens, 3 * width), i, 0).requires_grad_(backward),
            make((batch, tokens, width), i, 1),
        ),
        {"fastdiff": partial(run, ours), "sdpa": partial(run, "sdpa")},
        exact,
        "sdpa",
        make.dtype,
        bytes_moved=(12 if backward else 4) * size,
        flops=(14 if backward else 4) * batch * heads * tokens**2 * head_dim,
        tf32=tf32,
    )


def _conv(make: Maker, batch: int, c_in: int, c_out: int, side: int, tf32: bool | None) -> Case:
    """Norm, SiLU, convolution, bias, time and residual: the norm in the convolution, or before cuDNN's."""
    groups = min(32, c_in // 4)
    pixels = (side, side)

    def inputs(i: int) -> Inputs:
        x, residual = make((batch, c_in, *pixels), i, 0), make((batch, c_out, *pixels), i, 1)
        weight = (make((c_out, c_in, 3, 3), i, 2, torch.float32) / (9 * c_in) ** 0.5).to(make.dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        bias, time = make((c_out,), i, 3, torch.float32), make((batch, c_out), i, 4, torch.float32)
        norm = [make((c_in,), i, number, torch.float32) for number in (5, 6)]
        mean, squares = (v.float() for v in _statistics(x))
        gain, offset = ops.norm_factors(mean, squares, side**2, *norm, groups, eps=1e-6)
        return x, weight, bias, gain, offset, time, residual, *norm

    def fused(implementation: Any, inputs: Inputs) -> Tensor:
        x, weight, bias, gain, offset, time, residual = inputs[:7]
        options = {"gain": gain, "offset": offset, "time": time, "residual": residual}
        return ops.conv2d_fused(x, weight, bias, implementation=implementation, **options)

    def norm_before(inputs: Inputs) -> Tensor:
        x, weight, bias, _, _, time, residual, *norm = inputs
        with torch.no_grad():
            y = F.conv2d(ops.group_norm_act(x, *norm, groups, eps=1e-6), weight, padding=1)
        if not make.on_gpu:
            return y + (bias + time)[:, :, None, None].to(y.dtype) + residual
        from fastdiff.kernels.add import launch_add

        launch_add(y, residual, bias, time, y)
        return y

    def exact(inputs: Inputs) -> Tensor:
        wide = [v.double() for v in inputs[:7]]
        return reference_conv.conv2d_fused(Conv2dFusedCall(*wide, 1, 1, True, False))[0]

    return Case(
        f"norm, conv 3x3, adds {batch}x{c_in}x{side}x{side} to {c_out}",
        inputs,
        {
            "fastdiff": partial(fused, "triton" if make.on_gpu else "reference"),
            "fastdiff norm + cuDNN": norm_before,
            "torch": partial(fused, "aten"),
        },
        exact,
        "torch",
        make.dtype,
        bytes_moved=_size((batch, c_in + 2 * c_out, *pixels), make.dtype) + _size((9, c_in, c_out), make.dtype),
        flops=18.0 * batch * side**2 * c_in * c_out,
        tf32=tf32,
    )


def _plain_conv(make: Maker, batch: int, c_in: int, c_out: int, side: int, tf32: bool | None) -> Case:
    """The convolution with its bias alone."""

    def inputs(i: int) -> Inputs:
        weight = (make((c_out, c_in, 3, 3), i, 1, torch.float32) / (9 * c_in) ** 0.5).to(make.dtype)
        weight = weight.contiguous(memory_format=torch.channels_last)
        return make((batch, c_in, side, side), i, 0), weight, make((c_out,), i, 2)

    ours = "triton" if make.on_gpu else "reference"
    return Case(
        f"conv 3x3 {batch}x{c_in}x{side}x{side} to {c_out}",
        inputs,
        {
            "fastdiff": lambda inputs: ops.conv2d_fused(*inputs, act=False, implementation=ours),
            "cuDNN": lambda inputs: F.conv2d(*inputs, padding=1),
        },
        lambda inputs: F.conv2d(*(v.double() for v in inputs), padding=1),
        "cuDNN",
        make.dtype,
        bytes_moved=_size((batch, c_in + c_out, side, side), make.dtype) + _size((9, c_in, c_out), make.dtype),
        flops=18.0 * batch * side**2 * c_in * c_out,
        tf32=tf32,
    )


def _statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Of each channel the mean and the sum of squared differences from it."""
    wide = x.double().flatten(2)
    mean = wide.mean(2)
    return mean, (wide - mean[:, :, None]).square().sum(2)


def _size(shape: tuple[int, ...], dtype: torch.dtype) -> int:
    """Bytes."""
    return torch.Size(shape).numel() * dtype.itemsize
