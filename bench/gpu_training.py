"""A training step in the GPU suite: noising, loss, backward, fused AdamW and averages, against the peer's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from gpu_evaluations import networks_of
from gpu_measure import Ceilings, Clock, kind_of, summary
from gpu_networks import HO, diffusion
from gpu_tasks import Context, Row, Task, not_run
from torch import Tensor, nn

from fastdiff import ops
from fastdiff.ops.reference import bound as losses

BATCHES = (128, 16)
COMPILED_BATCH = 128


class Trainee:
    """A network that is trained on the same images and times again and again."""

    def __init__(self, context: Context, model: nn.Module, batch: int, ours: bool) -> None:
        self.device = torch.device(context.device)
        self.model, self.ours = model.train(), ours
        self.networks = networks_of(context.device, context.quick, HO)
        table = diffusion().noising_table()
        self.table = torch.tensor(table, dtype=torch.float32, device=self.device)
        self.x0, _ = self.networks.inputs(batch, torch.float32)
        self.t = torch.arange(batch, device=self.device) * 37 % 1000
        self.parameters = list(model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.shadow = [p.detach().clone() for p in self.parameters]

    def loss(self) -> Tensor:
        """Noising, the network under autocast, the loss."""
        if self.ours:
            x_t, target = ops.diffuse(self.x0, self.t, self.table, stream=1)
        else:
            target = torch.randn_like(self.x0)
            c0, c1 = (self.table[self.t, i].view(-1, 1, 1, 1) for i in range(2))
            x_t = c0 * self.x0 + c1 * target
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.device.type == "cuda"):
            m = self.networks.call(self.model, x_t, self.t)
        return (ops.mse(m, target) if self.ours else losses.mse(m, target)).mean()

    def update(self) -> None:
        """The optimizer and the averages."""
        self.optimizer.step()
        torch._foreach_lerp_(self.shadow, [p.detach() for p in self.parameters], 1e-4)

    def step(self) -> Tensor:
        """All of it."""
        self.optimizer.zero_grad()
        loss = self.loss()
        loss.backward()
        self.update()
        return loss.detach()


def training(context: Context) -> Iterator[Task]:
    """Rows per batch."""
    for batch in (2,) if context.quick else BATCHES:
        yield Task(f"training step, batch {batch}", partial(_row, context, batch), 8.0, partial(_warm, context, batch))


def peers(context: Context) -> Iterator[Task]:
    """The compiled peer."""
    name = f"training step, batch {COMPILED_BATCH}, peer by torch.compile"
    yield Task(name, partial(_compiled_row, context, COMPILED_BATCH), 20.0)


def _warm(context: Context, batch: int) -> None:
    Trainee(context, networks_of(context.device, context.quick, HO).fresh(torch.float32), batch, True).step()


def _gated(context: Context, batch: int) -> tuple[Trainee, Row]:
    """Ours, and the gate: what is seen again and again is learnt."""
    ours = Trainee(context, networks_of(context.device, context.quick, HO).fresh(torch.float32), batch, True)
    first = float(ours.step())
    for _ in range(5):
        last = float(ours.step())
    row = {"gate": "passed" if 0 < last < first else "failed", "losses": [first, last], "peer": ours.networks.peer_name}
    return ours, row | {"dtype": kind_of(torch.bfloat16 if context.on_gpu else torch.float32)}


def _times(context: Context, row: Row, batch: int, arms: dict[str, Callable[[], object]]) -> Row:
    networks, clock = networks_of(context.device, context.quick, HO), Clock(torch.device(context.device))
    row |= summary(clock.race(arms, context.rounds))
    row["cpu_us"] = {name: 1e6 * clock.cpu_seconds(arm, 2, 3) for name, arm in arms.items()}
    # Backward is two forwards.
    flops = 3 * networks.flops * batch
    us = row["us"]["fastdiff"]
    floor = Ceilings.of(clock.device, context.quick).floor(0, flops, torch.bfloat16)
    return row | {"teraflops": flops / us / 1e6, "floor_us": 1e6 * floor, "fraction_of_floor": 1e6 * floor / us}


def _row(context: Context, batch: int) -> Row:
    ours, row = _gated(context, batch)
    if row["gate"] != "passed":
        return row
    peer = Trainee(context, ours.networks.fresh_peer(torch.float32), batch, False)
    row = _times(context, row, batch, {"fastdiff": ours.step, "peer eager": peer.step})
    clock = Clock(ours.device)

    def forward() -> None:
        ours.loss()

    def both_ways() -> None:
        ours.loss().backward()

    parts: dict[str, Any] = clock.race(
        {"forward": forward, "forward and backward": both_ways, "optimizer and averages": ours.update},
        max(3, context.rounds // 3),
    )
    return row | {"parts_us": {name: 1e6 * min(values) for name, values in parts.items()}}


def _compiled_row(context: Context, batch: int) -> Row:
    if context.quick:
        return not_run("torch.compile is left out of small runs")
    ours, row = _gated(context, batch)
    if row["gate"] != "passed":
        return row
    start = time.perf_counter()
    model = ours.networks.fresh_peer(torch.float32)
    compiled: Any = torch.compile(model)
    peer = Trainee(context, compiled, batch, False)
    for _ in range(3):
        peer.step()
    torch.cuda.synchronize()
    row["compile_seconds"] = round(time.perf_counter() - start, 1)
    return _times(context, row, batch, {"fastdiff": ours.step, "peer compiled": peer.step})
