"""One launch of each kernel family, held to the op's reference: the first thing to know of a card.

    compute-sanitizer python bench/gpu_smoke.py [--loop]

launches them for a checker of memory: the kernels one by one, or with --loop a tiny network's sampling loop as a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import checkout  # noqa: F401
import torch
from gpu_measure import Ceilings, error_of, kind_of, verdict
from gpu_networks import Networks, noise, small_table
from gpu_tasks import Context, Row, Task
from torch import Tensor

import fastdiff as fd
from fastdiff import Diffusion, NoiseSchedule, ops, samplers
from fastdiff.ops.reference import bound as losses
from fastdiff.process.table import ROW_FIELDS

Pair = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
SHAPE = (3, 16, 12, 12)


class Launches:
    """What is launched. A method gives fastdiff's results and the reference's."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype

    def random(self, *shape: int, dtype: torch.dtype | None = None, seed: int = 0) -> Tensor:
        x = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(self.device, dtype or self.dtype)
        return x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x

    def both(self, call: Callable[..., Any], *values: Any, backward: tuple[int, ...] = (), **options: Any) -> Pair:
        """A call by itself and by its reference, with gradients of the values named in `backward`."""
        found = []
        for implementation in ("auto", "reference"):
            given = list(values)
            for i in backward:
                given[i] = given[i].detach().clone().requires_grad_()
            results = call(*given, implementation=implementation, **options)
            results = results if isinstance(results, tuple) else (results,)
            if backward:
                grads = [torch.linspace(-1, 1, r.numel(), device=r.device).view(r.shape).to(r.dtype) for r in results]
                results += torch.autograd.grad(results, [given[i] for i in backward], grads)
            found.append(tuple(results))
        return found[0], found[1]

    def times(self) -> Tensor:
        return torch.arange(SHAPE[0], device=self.device) * 333

    def diffuse(self) -> Pair:
        table = torch.tensor(Diffusion(NoiseSchedule.linear(1000)).noising_table(), dtype=torch.float32)
        return self.both(ops.diffuse, self.random(*SHAPE), self.times(), table.to(self.device), stream=0)

    def step(self) -> Pair:
        rows = ops.table_rows(samplers.ddpm(Diffusion(NoiseSchedule.linear(1000)), 10), self.device)
        row = torch.tensor([3], device=self.device)
        return self.both(ops.step, self.random(*SHAPE), self.random(*SHAPE, seed=1), rows, row)

    def posterior_mean(self) -> Pair:
        table = torch.tensor(Diffusion(NoiseSchedule.linear(1000)).posterior_table(), dtype=torch.float32)
        values = self.random(*SHAPE), self.random(*SHAPE, seed=1), self.times(), table.to(self.device)
        return self.both(ops.posterior_mean, *values, clip=1.0)

    def mse(self) -> Pair:
        target = self.random(*SHAPE, dtype=torch.float32, seed=1)
        return self.both(ops.mse, self.random(*SHAPE), target, backward=(0,))

    def hybrid_loss(self) -> Pair:
        diffusion = Diffusion(NoiseSchedule.linear(1000), variance="learned_range")
        rows = losses.BoundTable.build(diffusion, self.device).rows()
        batch, channels, *pixels = SHAPE
        target, x0, x_t = (self.random(*SHAPE, dtype=torch.float32, seed=seed).clamp(-1, 1) for seed in range(1, 4))
        x0 = torch.round(x0 * 127.5 + 127.5) / 127.5 - 1
        output = self.random(batch, 2 * channels, *pixels)
        return self.both(ops.hybrid_loss, output, target, x0, x_t, self.times(), rows, backward=(0,))

    def group_norm_act(self) -> Pair:
        weight, bias = (self.random(SHAPE[1], dtype=torch.float32, seed=seed) for seed in (1, 2))
        return self.both(ops.group_norm_act, self.random(*SHAPE), weight, bias, 4, backward=(0, 1, 2))

    def attention(self) -> Pair:
        if self.device.type == "cpu":
            found = ops.attention(self.random(2, 20, 96), 2)
            return (found,), (found,)
        qkv, found = self.random(2, 20, 192), []
        for implementation in ("triton", "sdpa"):
            given = qkv.clone().requires_grad_()
            out = ops.attention(given, 2, implementation=implementation)
            found.append((out, *torch.autograd.grad(out, given, torch.ones_like(out))))
        return found[0], found[1]

    def conv2d_fused(self) -> Pair:
        weight = (self.random(32, SHAPE[1], 3, 3, seed=1) / 12).contiguous(memory_format=torch.channels_last)
        x, ours = self.random(*SHAPE), "triton" if self.device.type == "cuda" else "aten"
        return tuple((ops.conv2d_fused(x, weight, implementation=kind),) for kind in (ours, "reference"))  # type: ignore[return-value]

    def dropout(self) -> Pair:
        seed = torch.tensor([7], device=self.device)
        return self.both(ops.dropout, self.random(*SHAPE), 0.25, seed)

    def add(self) -> Pair:
        from fastdiff.kernels.add import launch_add

        x, residual, time = self.random(*SHAPE), self.random(*SHAPE, seed=1), self.random(*SHAPE[:2], seed=2)
        out = torch.empty_like(x)
        launch_add(x, residual, None, time, out)
        return (out,), ((x.float() + residual.float() + time.float()[:, :, None, None]),)

    def select(self) -> Pair:
        from fastdiff.kernels.select import launch_select

        rows = ops.table_rows(samplers.euler(Diffusion(NoiseSchedule.linear(1000)), 18), self.device)
        x, row = self.random(*SHAPE, dtype=torch.float32), torch.tensor([2], device=self.device)
        scaled, t = torch.zeros_like(x).to(self.dtype), torch.arange(len(rows), device=self.device).float()
        time = torch.zeros(1, device=self.device)
        launch_select(x, rows, row, scaled, t=t, time=time)
        scale = rows[2, ROW_FIELDS.index("ci")]
        return (scaled, time), (x * scale, t[2:3])


KERNELS = (
    "group_norm_act", "conv2d_fused", "attention", "step", "diffuse", "select", "add", "mse", "hybrid_loss",
    "posterior_mean", "dropout",
)  # fmt: skip
# They have no way without Triton.
ON_GPU_ONLY = ("select", "add")


def smoke(context: Context) -> Iterator[Task]:
    """A row per family, in float32 and bfloat16; the loop's parts; what the card can do."""
    device = torch.device(context.device)
    if context.on_gpu:
        yield Task("card", _card)
    for name in names(context.on_gpu):
        yield Task(f"{name}, one launch", partial(_row, device, name), warm=partial(_row, device, name))
    networks = Networks(device, quick=True)
    yield Task("network, tiny", partial(_network, networks), warm=partial(_network, networks))
    yield Task("sampling loop, tiny", partial(_loop, networks), warm=partial(_loop, networks))
    yield Task("csrc/cuda", _library)
    yield Task("ceilings", lambda: Ceilings.of(device, context.quick).row())


def _card() -> Row:
    found = torch.cuda.get_device_properties(0)
    size = f"{found.total_memory / 2**30:.0f} GiB, {getattr(found, 'L2_cache_size', 0) / 2**20:.0f} MiB of L2"
    versions = f"CUDA {torch.version.cuda}, cuDNN {torch.backends.cudnn.version()}"
    card = f"{found.name}, sm_{found.major}{found.minor}, {found.multi_processor_count} multiprocessors"
    return {"gate": "none", "note": f"{card}, {size}; {versions}"}


def names(on_gpu: bool) -> list[str]:
    """The families that run there."""
    return [name for name in KERNELS if on_gpu or name not in ON_GPU_ONLY]


def _row(device: torch.device, name: str) -> Row:
    errors = {}
    for dtype in (torch.float32, torch.bfloat16):
        ours, reference = getattr(Launches(device, dtype), name)()
        found = verdict({"fastdiff": error_of(ours, reference)}, 0.0, dtype)
        errors[kind_of(dtype)] = found["errors"]["fastdiff"]
        # TensorFloat-32 is PyTorch's choice in convolutions.
        is_product = name in ("conv2d_fused", "attention")
        if not errors[kind_of(dtype)] <= (2e-3 if is_product and dtype == torch.float32 else 2e-2):
            return {"gate": "failed", "errors": errors, "reason": f"off by {errors[kind_of(dtype)]:.2g}, {dtype}"}
    return {"gate": "passed", "errors": errors}


def _network(networks: Networks) -> Row:
    x, t = networks.inputs(2)
    with torch.no_grad():
        exact = networks.ours(torch.float32)(x.float(), t)
        plain = error_of(networks.ours()(x, t), exact)
    return verdict({"fastdiff": error_of(fd.compile(networks.ours())(x, t), exact)}, plain, networks.dtype)


def _loop(networks: Networks) -> Row:
    runner: Any = "graph" if networks.device.type == "cuda" else "native"
    options: dict[str, Any] = {"shape": (2, 3, 8, 8), "progress": False, "x_init": noise(networks, 2)}
    model, table = networks.ours(), small_table(4)
    eager = fd.sample(model, table, runner="eager", **options)
    exact = fd.sample(networks.ours(torch.float32), table, runner="eager", **options)
    found = fd.sample(model, table, runner=runner, **options)
    return verdict({"fastdiff": error_of(found, exact)}, error_of(eager, exact), networks.dtype)


def _library() -> Row:
    from fastdiff.engine.cuda.library import default_library

    if not torch.cuda.is_available():
        return {"gate": "not run", "reason": "it needs a GPU"}
    found = default_library().versions(0)
    return {"gate": "passed", "note": f"driver {found.driver}, runtime {found.runtime}, WHILE: {found.has_loops}"}


def main() -> int:
    """Launch everything for a checker."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if "--loop" in sys.argv:
        todo = [("sampling loop", partial(_loop, Networks(device, quick=True)))]
    else:
        todo = [(name, partial(_row, device, name)) for name in names(device.type == "cuda")]
    bad = 0
    for name, run in todo:
        try:
            gate = run()["gate"]
        except Exception as error:
            gate = f"raised {type(error).__name__}: {str(error).splitlines()[0][:200]}"
        bad += gate != "passed"
        print(f"launched {name}: {gate}", flush=True)
    if device.type == "cuda":
        torch.cuda.synchronize()
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
