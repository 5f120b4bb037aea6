"""The kernels' cases of the GPU suite: each op against PyTorch's own, on the shapes of the networks it is made for."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from gpu_measure import Case
from torch import Tensor

from fastdiff import (
    Diffusion,
    NoiseSchedule,
    ops,
    samplers,
)
from fastdiff.calls import Conv2dFusedCall, DiffuseCall, GroupNormActCall, PosteriorMeanCall, StepCall
from fastdiff.ops.reference import (
    bound as losses,
)
from fastdiff.ops.reference import (
    conv2d_fused as reference_conv,
)
from fastdiff.ops.reference import diffuse as reference_diffuse
from fastdiff.ops.reference import (
    group_norm_act as reference_norm,
)
from fastdiff.ops.reference import posterior_mean as reference_posterior_mean
from fastdiff.ops.reference import step as reference_step
from fastdiff.tensors import split_qkv

T = 1000
FEATURES = [(1, 128, 32, 32), (16, 256, 16, 16), (128, 128, 32, 32), (128, 256, 8, 8)]
# Batch, tokens, heads, channels of a head.
TOKENS = [(16, 256, 1, 256), (128, 256, 1, 256), (128, 64, 6, 64), (16, 256, 1, 512)]
# Batch, channels in and out, side of the image.
CONVS = [(1, 128, 128, 32), (64, 128, 128, 32), (64, 256, 256, 16), (64, 256, 256, 8)]


def cases(device: torch.device, quick: bool) -> Iterator[Case]:
    """All of them, one after the other, so that their tensors come and go."""
    dtypes = (torch.float32,) if quick else (torch.bfloat16, torch.float32)
    batches = (2,) if quick else (64, 1024)
    for dtype in dtypes:
        for batch in batches:
            image = (batch, 3, 8, 8) if quick else (batch, 3, 32, 32)
            yield _diffuse(image, dtype, device)
            yield _step(image, dtype, device)
            yield _posterior_mean(image, dtype, device)
            yield from _losses(image, dtype, device)
        features = (
            [(2, 16, 8, 8)] if quick else [(1, 128, 32, 32), (16, 256, 16, 16), (128, 128, 32, 32), (128, 256, 8, 8)]
        )
        for shape in features:
            for backward in (False, True):
                yield _group_norm(shape, dtype, device, backward)
        tokens = (
            [(2, 16, 2, 16)] if quick else [(16, 256, 1, 256), (128, 256, 1, 256), (128, 64, 6, 64), (16, 256, 1, 512)]
        )
        for size in tokens:
            for backward in (False, True):
                yield _attention(*size, dtype, device, backward)
        convs = (
            [(2, 16, 16, 8)]
            if quick
            else [(1, 128, 128, 32), (64, 128, 128, 32), (64, 256, 256, 16), (64, 256, 256, 8)]
        )
        for batch, c_in, c_out, side in convs:
            yield _conv(batch, c_in, c_out, side, dtype, device)


def _on_gpu(device: torch.device) -> bool:
    return device.type == "cuda"


def _image(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    x = torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)
    return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x


def _name(op: str, shape: tuple[int, ...]) -> str:
    return f"{op} {'x'.join(map(str, shape))}"


def _diffuse(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    x0 = _image(shape, dtype, device, 0).clamp(-1, 1)
    t = torch.arange(shape[0], device=device) * 37 % T
    table = torch.tensor(Diffusion(NoiseSchedule.linear(T)).noising_table(), dtype=torch.float32, device=device)
    ids, row = torch.arange(shape[0], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    wide = DiffuseCall(x0.double(), t, table, None, ids, row, 0, 0, 256, torch.float64, True)

    def plain() -> tuple[Tensor, Tensor]:
        z = torch.randn_like(x0)
        c0, c1 = (table[t, i].to(x0.dtype).view(-1, 1, 1, 1) for i in range(2))
        return c0 * x0 + c1 * z, z

    return Case(
        _name("diffuse", shape),
        {"fastdiff": lambda: ops.diffuse(x0, t, table, stream=0), "torch": plain},
        lambda: reference_diffuse.diffuse(wide),
        None,
        dtype,
        bytes_moved=3 * x0.numel() * x0.element_size(),
    )


def _step(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    x, m = _image(shape, dtype, device, 0), _image(shape, dtype, device, 1)
    table = samplers.ddpm(Diffusion(NoiseSchedule.linear(T)), T)
    rows, row = ops.table_rows(table, device), torch.tensor([500], device=device)
    out, ids = torch.empty_like(x), torch.arange(shape[0], device=device)
    wide = StepCall(x.double(), m.double(), rows, row, None, ids, 0, False, None, None, None, out)
    k = {name: float(table[name][500]) for name in ("px", "pm", "cx", "c0", "s")}

    def plain() -> Tensor:
        pred = (k["px"] * x + k["pm"] * m).clamp_(-1, 1)
        return k["cx"] * x + k["c0"] * pred + k["s"] * torch.randn_like(x)

    return Case(
        _name("step", shape),
        {"fastdiff": lambda: ops.step(x, m, rows, row, out=out), "torch": plain},
        lambda: reference_step.step(wide)[0],
        None,
        dtype,
        bytes_moved=3 * x.numel() * x.element_size(),
    )


def _posterior_mean(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Case:
    x, m = _image(shape, dtype, device, 0), _image(shape, dtype, device, 1)
    t = torch.arange(shape[0], device=device) * 37 % T
    table = torch.tensor(Diffusion(NoiseSchedule.linear(T)).posterior_table(), dtype=torch.float32, device=device)
    wide = PosteriorMeanCall(x.double(), m.double(), t, table.double(), 1.0)

    def plain() -> Tensor:
        c0, c1, c2, c3 = (table[t, i].view(-1, 1, 1, 1) for i in range(4))
        return (c0 * (c2 * x + c3 * m).clamp(-1, 1) + c1 * x).to(x.dtype)

    return Case(
        _name("posterior_mean", shape),
        {"fastdiff": lambda: ops.posterior_mean(x, m, t, table, clip=1.0), "torch": plain},
        lambda: reference_posterior_mean.posterior_mean(wide),
        "torch",
        dtype,
        bytes_moved=3 * x.numel() * x.element_size(),
    )


def _losses(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Iterator[Case]:
    """With their gradients, of a float32 target."""
    target = _image(shape, torch.float32, device, 1)
    output = _image(shape, dtype, device, 0).requires_grad_()

    def gradient(loss: Any, of: Tensor) -> Tensor:
        return torch.autograd.grad(loss(of), of)[0]

    def exact(loss: Any, of: Tensor) -> Tensor:
        return gradient(loss, of.detach().double().requires_grad_())

    plain = lambda m: losses.mse(m, target.to(m.dtype if m.dtype == torch.float64 else torch.float32)).sum()  # noqa: E731
    moved = output.numel() * (3 * output.element_size() + 8)
    yield Case(
        _name("mse with gradient", shape),
        {
            "fastdiff": lambda: gradient(lambda m: ops.mse(m, target).sum(), output),
            "torch": partial(gradient, plain, output),
        },
        partial(exact, plain, output),
        "torch",
        dtype,
        bytes_moved=moved,
    )
    diffusion = Diffusion(NoiseSchedule.linear(T), variance="learned_range")
    t = torch.arange(shape[0], device=device) * 37 % T
    x0, x_t = (torch.round(target.clamp(-1, 1) * 127.5 + 127.5) / 127.5 - 1), _image(shape, torch.float32, device, 2)
    wide = _image((shape[0], 2 * shape[1], *shape[2:]), dtype, device, 3).requires_grad_()
    table = losses.BoundTable.build(diffusion, device)
    tables = {torch.float64: losses.BoundTable.from_rows(table.rows().double(), True)}

    def hybrid(m: Tensor) -> Tensor:
        kind = torch.float64 if m.dtype == torch.float64 else torch.float32
        images = (v.to(kind) for v in (target, x0, x_t))
        terms = losses.hybrid(m, *images, t, tables.get(kind, table))
        return (terms.mse + terms.vlb).sum()

    def fused(m: Tensor) -> Tensor:
        simple, bound = ops.hybrid_loss(m, target, x0, x_t, t, table.rows())
        return (simple + T * bound).sum()

    yield Case(
        _name("hybrid loss with gradient", shape),
        {"fastdiff": partial(gradient, fused, wide), "torch": partial(gradient, hybrid, wide)},
        partial(exact, hybrid, wide),
        "torch",
        dtype,
        bytes_moved=wide.numel() * (3 * wide.element_size() + 12),
    )


def _group_norm(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, backward: bool) -> Case:
    groups = min(32, shape[1] // 4)
    x = _image(shape, dtype, device, 0).requires_grad_(backward)
    weight, bias = (_image(shape[1:2], torch.float32, device, s).requires_grad_(backward) for s in (1, 2))
    grad = _image(shape, dtype, device, 3)

    def run(norm: Any, *values: Tensor) -> Any:
        with torch.set_grad_enabled(backward):
            y = norm(*values)
        return torch.autograd.grad(y, values, grad.to(y.dtype)) if backward else y

    def plain(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.silu(F.group_norm(x, groups, weight.to(x.dtype), bias.to(x.dtype), 1e-6))

    def oracle(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        nothing = (None,) * 4
        call = GroupNormActCall(x, *nothing, weight, bias, None, None, groups, 1e-6, True)
        return reference_norm.group_norm_act(call)[0]

    def exact() -> Any:
        wide = [v.detach().double().requires_grad_(backward) for v in (x, weight, bias)]
        return run(oracle, *wide)

    moved = (5 if backward else 2) * x.numel() * x.element_size()
    return Case(
        _name("group_norm_act with gradient" if backward else "group_norm_act", shape),
        {
            "fastdiff": lambda: run(lambda x, w, b: ops.group_norm_act(x, w, b, groups, eps=1e-6), x, weight, bias),
            "torch": lambda: run(plain, x, weight, bias),
        },
        exact,
        "torch",
        dtype,
        bytes_moved=moved,
    )


def _attention(
    batch: int, tokens: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device, backward: bool
) -> Case:
    qkv = _image((batch, tokens, 3 * heads * head_dim), dtype, device, 0).requires_grad_(backward)
    grad = _image((batch, tokens, heads * head_dim), dtype, device, 1)

    def run(implementation: Any, qkv: Tensor) -> Tensor:
        with torch.set_grad_enabled(backward):
            out = ops.attention(qkv, heads, layout="legacy", implementation=implementation)
        return torch.autograd.grad(out, qkv, grad.to(qkv.dtype))[0] if backward else out

    def exact() -> Tensor:
        wide = qkv.detach().double().requires_grad_(backward)
        with torch.set_grad_enabled(backward):
            q, k, v = split_qkv(wide, heads, "legacy")
            out = ((q @ k.transpose(2, 3)) * head_dim**-0.5).softmax(3) @ v
            out = out.transpose(1, 2).flatten(2)
        return torch.autograd.grad(out, wide, grad.double())[0] if backward else out

    # Without a GPU there is no Triton kernel to run.
    ours = "triton" if _on_gpu(device) else "auto"
    return Case(
        f"attention {'with gradient ' if backward else ''}{batch}x{tokens}, {heads} heads of {head_dim}",
        {"fastdiff": lambda: run(ours, qkv), "sdpa": lambda: run("sdpa", qkv)},
        exact,
        "sdpa",
        dtype,
        flops=(14 if backward else 4) * batch * heads * tokens**2 * head_dim,
    )


def _conv(batch: int, c_in: int, c_out: int, side: int, dtype: torch.dtype, device: torch.device) -> Case:
    x, residual = (
        _image((batch, c_in, side, side), dtype, device, 0),
        _image((batch, c_out, side, side), dtype, device, 1),
    )
    weight = (_image((c_out, c_in, 3, 3), torch.float32, device, 2) / (9 * c_in) ** 0.5).to(dtype)
    weight = weight.contiguous(memory_format=torch.channels_last)
    bias, time, gain, offset = (
        _image(size, torch.float32, device, 3 + i)
        for i, size in enumerate([(c_out,), (batch, c_out), *[(batch, c_in)] * 2])
    )
    options = {"time": time, "gain": gain, "offset": offset, "residual": residual}
    ours = "triton" if _on_gpu(device) else "reference"

    def run(implementation: Any) -> Tensor:
        return ops.conv2d_fused(x, weight, bias, implementation=implementation, **options)

    def exact() -> Tensor:
        wide = [v.double() for v in (x, weight, bias, gain, offset, time, residual)]
        return reference_conv.conv2d_fused(Conv2dFusedCall(*wide, 1, 1, True, False))[0]

    return Case(
        f"conv2d_fused {batch}x{c_in}x{side}x{side} to {c_out}",
        {"fastdiff": lambda: run(ours), "torch": lambda: run("aten")},
        exact,
        "torch",
        dtype,
        flops=18.0 * batch * side**2 * c_in * c_out,
    )
