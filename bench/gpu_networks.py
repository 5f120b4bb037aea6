"""Whole networks in the GPU suite: an evaluation, a sampling loop, a training step, and where the time goes.

The network is that of Ho et al. for CIFAR-10. The peer is diffusers' UNet2DModel with the same weights count, or, where
diffusers is missing, fastdiff's own module with PyTorch's group norm and attention, which the results then say.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from gpu_measure import Case, Clock, gate, summary
from torch import Tensor, nn

import fastdiff as fd
from fastdiff import ops
from fastdiff.nets.unet import GroupNormAct
from fastdiff.ops.reference import bound as losses

HO_FLOPS = 12.4e9
DIFFUSERS_HO = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}
DIFFUSERS_QUICK = DIFFUSERS_HO | {
    "sample_size": 8,
    "block_out_channels": (16, 16),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "norm_num_groups": 4,
    "layers_per_block": 1,
}
QUICK = fd.UNetConfig(
    image_size=8, channels=16, channel_mult=(1, 1), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4
)


class PlainNorm(nn.Module):
    """A `GroupNormAct` by PyTorch's own kernels, for the peer without diffusers."""

    def __init__(self, norm: GroupNormAct) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias
        self.groups, self.eps, self.act = norm.groups, norm.eps, norm.act

    def forward(
        self, x: Tensor, scale: Tensor | None = None, shift: Tensor | None = None, added: Tensor | None = None
    ) -> Tensor:
        x = x if added is None else x + added[:, :, None, None]
        h = F.group_norm(x, self.groups, self.weight.to(x.dtype), self.bias.to(x.dtype), self.eps)
        if scale is not None and shift is not None:
            h = h * (1 + scale[:, :, None, None]) + shift[:, :, None, None]
        return F.silu(h) if self.act else h


class Networks:
    """Builds the arms. Attributes: config, the peer's name in words."""

    def __init__(self, device: torch.device, quick: bool) -> None:
        self.device = device
        self.quick = quick
        self.config = QUICK if quick else fd.UNetConfig.preset("ho-cifar10")
        self.has_diffusers = importlib.util.find_spec("diffusers") is not None
        peer = "diffusers UNet2DModel" if self.has_diffusers else "fastdiff's module with PyTorch's norm and attention"
        self.peer_name = f"{peer}, channels_last"
        self.dtype = torch.float32 if device.type == "cpu" else torch.bfloat16

    def ours(self, dtype: torch.dtype | None = None) -> fd.UNet:
        """Random weights everywhere, the same ones at every call."""
        torch.manual_seed(0)
        unet = fd.UNet(self.config)
        with torch.no_grad():
            for parameter in unet.parameters():
                if parameter.ndim > 1 and not parameter.any():
                    parameter.normal_(std=0.02)
        return unet.to(self.device, dtype or self.dtype).eval()

    def peer(self, dtype: torch.dtype | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """A network of the same shape by its own means."""
        model: nn.Module
        if self.has_diffusers:
            import diffusers

            torch.manual_seed(0)
            model = diffusers.UNet2DModel(**(DIFFUSERS_QUICK if self.quick else DIFFUSERS_HO))
        else:
            model = with_plain_norms(self.ours(torch.float32))
        model = model.to(self.device, dtype or self.dtype, memory_format=torch.channels_last).eval()
        return model

    def call(self, model: Any, x: Tensor, t: Tensor) -> Tensor:
        """The output as a tensor, whichever the network."""
        y = model(x, t)
        return y if isinstance(y, Tensor) else y.sample

    def inputs(self, batch: int, dtype: torch.dtype | None = None) -> tuple[Tensor, Tensor]:
        """A state in channels_last memory, and times."""
        size = self.config.image_size
        generator = torch.Generator(self.device).manual_seed(0)
        x = torch.randn((batch, 3, size, size), generator=generator, device=self.device).to(dtype or self.dtype)
        return x.contiguous(memory_format=torch.channels_last), torch.full((batch,), 500, device=self.device)


def graphed(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """The call as one launch of a CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            call()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out

    return replay


def unet(
    networks: Networks, clock: Clock, rounds: int, compiled: bool, left: Callable[[], float]
) -> Iterator[dict[str, Any]]:
    """Rows of one evaluation per batch size, ours eager and in a graph against the peers; and `accelerate`."""
    for batch in (2,) if networks.quick else (1, 16, 256):
        if left() < 20:
            yield {"name": f"unet batch {batch}", "gate": "not run", "reason": "the time was used up"}
            continue
        with torch.inference_mode():
            yield _evaluation(networks, clock, rounds, batch, compiled, left)
        torch._dynamo.reset()
    if networks.has_diffusers:
        yield _accelerated(networks, clock, rounds)


def _evaluation(
    networks: Networks, clock: Clock, rounds: int, batch: int, compiled: bool, left: Callable[[], float]
) -> dict[str, Any]:
    x, t = networks.inputs(batch)
    model, peer, plain = networks.ours(), networks.peer(), with_plain_norms(networks.ours())
    # float64 where it fits, for the gate.
    precise = torch.float64 if batch <= 16 else torch.float32
    exact = networks.ours(torch.float32).to(precise)
    gated: dict[str, Callable[[], Tensor]] = {"fastdiff": lambda: networks.call(model, x, t)}
    if networks.device.type == "cuda":
        gated["fastdiff graph"] = graphed(gated["fastdiff"])
    arms = gated | {"plain": lambda: networks.call(plain, x, t)}
    case = Case(f"unet batch {batch}", arms, lambda: exact(x.to(precise), t), "plain", networks.dtype)
    row = gate(case) | {"peer": networks.peer_name, "not_run": {}}
    if row["gate"] != "passed":
        return row
    arms = gated | {"peer eager": lambda: networks.call(peer, x, t)}
    if compiled and left() > 90:
        start = time.perf_counter()
        fast = torch.compile(networks.peer(), mode="max-autotune")
        arms["peer compiled"] = lambda: networks.call(fast, x, t)
        arms["peer compiled"]()
        row["compile_seconds"] = time.perf_counter() - start
    else:
        row["not_run"]["peer compiled"] = "no time left to compile" if compiled else "left out by --no-compile"
    row |= summary(clock.race(arms, rounds))
    if not networks.quick:
        row["teraflops"] = HO_FLOPS * batch / row["us"]["fastdiff"] / 1e6
    return row


def with_plain_norms(model: nn.Module) -> nn.Module:
    """The network with PyTorch's norms in place of the op, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, GroupNormAct):
                setattr(module, name, PlainNorm(child))
    return model


def _accelerated(networks: Networks, clock: Clock, rounds: int) -> dict[str, Any]:
    x, t = networks.inputs(2 if networks.quick else 16)
    plain, fast = networks.peer(), networks.peer()
    row: dict[str, Any] = {"name": f"diffusers with fd.accelerate, batch {x.shape[0]}", "peer": networks.peer_name}
    try:
        report = fd.accelerate(fast, check=(x, t))
    except RuntimeError as error:
        return row | {"gate": "failed", "reason": str(error)}
    with torch.inference_mode():
        arms = {"fastdiff": lambda: networks.call(fast, x, t), "peer eager": lambda: networks.call(plain, x, t)}
        return row | {"gate": "passed", "errors": {"fastdiff": report.error}} | summary(clock.race(arms, rounds))


def sampling(networks: Networks, clock: Clock, rounds: int) -> Iterator[dict[str, Any]]:
    """DDIM: `fd.sample` with our network against the peer's network in diffusers' loop (or a plain one)."""
    batch, steps = (2, 3) if networks.quick else (64, 20)
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000))
    table = fd.samplers.ddim(diffusion, steps, spacing="leading")
    model, peer = networks.ours(), networks.peer()
    x, _ = networks.inputs(batch)
    coefficients = [{k: float(table[k][r]) for k in ("t", "px", "pm", "cx", "c0")} for r in range(steps)]

    def ours() -> Tensor:
        # One runner on every device, so that the CPU's dry run takes the same way.
        return fd.sample(model, table, shape=tuple(x.shape), x_init=x, runner="eager", progress=False, dtype=x.dtype)

    def plain(network: Any) -> Tensor:
        state = x
        for k in coefficients:
            m = networks.call(network, state, torch.full((batch,), int(k["t"]), device=x.device))
            state = k["cx"] * state + k["c0"] * (k["px"] * state + k["pm"] * m).clamp(-1, 1)
        return state

    with torch.inference_mode():
        # The loop by itself: the same network in both. Rounding of the state to 16 bits differs between the two.
        arms = {"fastdiff": ours, "loop": lambda: plain(model)}
        case = Case(f"ddim, {steps} steps of {batch}", arms, lambda: plain(model).double(), "loop", x.dtype)
        row = gate(case) | {"peer": f"{networks.peer_name}, in a plain loop"}
        if row["gate"] == "passed":
            row |= summary(clock.race({"fastdiff": ours, "peer": lambda: plain(peer)}, max(3, rounds // 3)))
            row["images_per_second"] = batch / row["us"]["fastdiff"] * 1e6
    yield row


def training(networks: Networks, clock: Clock, rounds: int, compiled: bool) -> Iterator[dict[str, Any]]:
    """A step with noising, loss, backward, fused AdamW and averages; the peer with PyTorch's and diffusers' means."""
    batch = 2 if networks.quick else 128
    autocast = networks.device.type == "cuda"
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000))
    table = torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=networks.device)
    x0, _ = networks.inputs(batch, torch.float32)
    t = torch.arange(batch, device=networks.device) * 37 % 1000
    shares: dict[str, float] = {}

    def step_of(model: Any, ours: bool) -> tuple[Callable[[], Tensor], Callable[[], None]]:
        parameters = list(model.parameters())
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, fused=True)
        shadow = [p.detach().clone() for p in parameters]

        def update() -> None:
            optimizer.step()
            torch._foreach_lerp_(shadow, [p.detach() for p in parameters], 1e-4)

        def step() -> Tensor:
            optimizer.zero_grad()
            if ours:
                x_t, target = ops.diffuse(x0, t, table, stream=1)
            else:
                target = torch.randn_like(x0)
                c0, c1 = (table[t, i].view(-1, 1, 1, 1) for i in range(2))
                x_t = c0 * x0 + c1 * target
            with torch.autocast(networks.device.type, dtype=torch.bfloat16, enabled=autocast):
                m = networks.call(model, x_t, t)
            loss = ops.mse(m, target).mean() if ours else losses.mse(m, target).mean()
            loss.backward()
            update()
            return loss.detach()

        return step, update

    model, peer = networks.ours(torch.float32).train(), networks.peer(torch.float32)
    peer.train()  # type: ignore[attr-defined]
    ours, update = step_of(model, True)
    arms = {"fastdiff": ours, "peer eager": step_of(peer, False)[0]}
    row: dict[str, Any] = {"name": f"training step, batch {batch}", "peer": networks.peer_name}
    if compiled:
        other = networks.peer(torch.float32)
        other.train()  # type: ignore[attr-defined]
        fast = torch.compile(other)
        arms["peer compiled"] = step_of(fast, False)[0]
        arms["peer compiled"]()
    first = float(ours())
    for _ in range(5):
        last = float(ours())
    # The gate: the same images and noise again and again are learnt.
    row |= {"gate": "passed" if 0 < last < first else "failed", "losses": [first, last]}
    if row["gate"] == "passed":
        row |= summary(clock.race(arms, rounds))
        shares["optimizer and averages"] = min(clock.race({"update": update}, rounds)["update"]) * 1e6
        row["parts_us"] = shares
        if not networks.quick:
            row["teraflops"] = 3 * HO_FLOPS * batch / row["us"]["fastdiff"] / 1e6
    yield row


def split(networks: Networks, batch: int) -> dict[str, Any]:
    """Where an evaluation's time goes: kernels by name, with calls and share, from PyTorch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    model = networks.ours()
    x, t = networks.inputs(batch)
    on_gpu = networks.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with torch.inference_mode():
        for _ in range(3):
            model(x, t)
        with profile(activities=activities) as profiler:
            model(x, t)
            if on_gpu:
                torch.cuda.synchronize()
    events = profiler.key_averages()
    if on_gpu:
        events = [e for e in events if str(e.device_type).endswith("CUDA")]
    times = [(e.key, e.count, float(e.self_device_time_total if on_gpu else e.self_cpu_time_total)) for e in events]
    times = sorted((row for row in times if row[2] > 0), key=lambda row: -row[2])
    total = sum(row[2] for row in times) or 1.0
    kernels = [{"kernel": key[:90], "calls": count, "us": us, "share": us / total} for key, count, us in times[:25]]
    return {"name": f"split of one evaluation, batch {batch}", "gate": "none", "total_us": total, "kernels": kernels}
