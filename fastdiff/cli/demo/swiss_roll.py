"""The demonstration in two dimensions: the swiss roll of Sohl-Dickstein et al. (2015), with everything there is to see.

The data's density is known, so the model's likelihoods can be held against the truth.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor, nn

from fastdiff import likelihood, ops, samplers
from fastdiff.cli import environment
from fastdiff.cli.progress import Bars, duration
from fastdiff.files.atomic import atomic_file
from fastdiff.nets.model import network_times
from fastdiff.ops.reference.bound import mse
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import Stream, integers
from fastdiff.process.schedule import Array, NoiseSchedule
from fastdiff.sampling.callbacks import SamplingStep
from fastdiff.sampling.runner import sample
from fastdiff.training.densities import draw, log_normal

__all__ = ["PROCESSES", "WRITTEN", "PointNet", "SwissRollConfig", "roll_log_density", "roll_points", "run_swiss_roll"]

# The roll turns from 1.5 pi to 4.5 pi, and its end lies at radius 0.9.
_FIRST_TURN, _LAST_TURN, _RADIUS = 1.5 * math.pi, 4.5 * math.pi, 0.9
# Standard deviation of the data around the roll.
_WIDTH = 0.03
_FREQUENCIES = 6
_LN2 = math.log(2.0)

WRITTEN = (
    ("trajectories.png", "the forward and the reverse process"),
    ("trajectories.gif", "the reverse process, moving"),
    ("score.png", "the learned score as arrows"),
    ("density.png", "the exact log-density and the model's, by the probability flow"),
    ("bound.png", "the bound's terms, against the data's entropy"),
    ("metrics.json", "all numbers"),
)
"""The files, and what they show."""

PROCESSES: dict[str, Callable[[int], Diffusion]] = {
    "preserving": lambda num: Diffusion(NoiseSchedule.cosine(num), "v"),
    "exploding": lambda num: Diffusion(NoiseSchedule.variance_exploding(num, 0.02, 20.0), "F"),
    "edm": lambda num: Diffusion(NoiseSchedule.edm(num, 0.01, 20.0), "F"),
    "flow": lambda num: Diffusion(NoiseSchedule.flow(num), "velocity"),
    "vdm": lambda num: Diffusion(NoiseSchedule.vdm(num, 8.0, -8.0), "v"),
}
"""Processes by name, for a number of timesteps, each with what it is mostly trained to predict."""


@dataclass(frozen=True)
class SwissRollConfig:
    """Settings of the demonstration.

    Attributes:
        steps: Training steps.
        batch_size: Points per step.
        width: Of the network's hidden layers.
        num_timesteps: T.
        process: One of `PROCESSES`.
        num_points: Points to sample, to score and to draw.
        grid: Points a side of the map of the density.
        frames: Of the animation.
        seed: Of everything.
    """

    steps: int = 4000
    batch_size: int = 512
    width: int = 128
    num_timesteps: int = 100
    process: str = "preserving"
    num_points: int = 2000
    grid: int = 72
    frames: int = 40
    seed: int = 0

    @classmethod
    def quick(cls, seed: int = 0, process: str = "preserving") -> SwissRollConfig:
        """The same in seconds, with a network that has barely begun to learn."""
        return cls(steps=300, process=process, num_points=400, grid=20, frames=8, seed=seed)

    def diffusion(self) -> Diffusion:
        """The process, and what the network predicts. Raises ValueError for an unknown name."""
        if self.process not in PROCESSES:
            raise ValueError(f"unknown {spelt('process')} {self.process!r}: {nearest_name(self.process, PROCESSES)}")
        return PROCESSES[self.process](self.num_timesteps)


class PointNet(nn.Module):
    """A multi-layer perceptron on points [B, 2] and times [B], with residual layers.

    Args:
        width: Of the hidden layers.
        diffusion: Whose times it is told: as shares of their range, of their logarithm where they are levels sigma.
    """

    def __init__(self, width: int, diffusion: Diffusion) -> None:
        super().__init__()
        times, seen = diffusion.schedule.timesteps, diffusion.schedule.coordinates
        self.is_level = seen.clock == "sigma"
        times = np.log(times) if self.is_level else times
        # Listed times have T of them, from 0.
        self.start = float(times[0]) if seen.is_continuous else 0.0
        self.length = float(times[-1]) - self.start if seen.is_continuous else float(diffusion.num_timesteps)
        self.first = nn.Linear(2 + 2 * _FREQUENCIES, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.last = nn.Linear(width, 2)
        nn.init.zeros_(self.last.weight)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """[B, 2], from points [B, 2] and times [B], whole or not."""
        octaves = 2.0 ** torch.arange(_FREQUENCIES, device=x.device) * (math.pi / 2)
        told = t.to(x.dtype).log() if self.is_level else t.to(x.dtype)
        angles = ((told - self.start) / self.length)[:, None] * octaves
        h = self.first(torch.cat([2 * x, angles.sin(), angles.cos()], dim=1))
        for layer in self.hidden:
            h = h + layer(nn.functional.silu(h))
        out: Tensor = self.last(nn.functional.silu(h))
        return out


def roll_points(count: int, seed: int) -> Tensor:
    """[count, 2] float32 points of the roll: evenly along its angle, with Gaussian noise around it."""
    rng = np.random.default_rng(seed)
    centres = _roll(rng.uniform(size=count))
    return torch.from_numpy(centres + _WIDTH * rng.normal(size=centres.shape)).float()


def roll_log_density(x: Tensor, nodes: int = 4000) -> Tensor:
    """[B] float64, log of the roll's density at points [B, 2], in nats, by quadrature along its angle."""
    centres = torch.from_numpy(_roll((np.arange(nodes) + 0.5) / nodes))
    found = []
    for part in x.double().split(500):
        squares = (part[:, None] - centres).square().sum(dim=2)
        found.append(torch.logsumexp(-0.5 * squares / _WIDTH**2, dim=1))
    return torch.cat(found) - math.log(nodes) - math.log(2 * math.pi * _WIDTH**2)


def run_swiss_roll(
    folder: str | Path,
    config: SwissRollConfig | None = None,
    *,
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, sample, score and draw; writes everything into one folder.

    Args:
        folder: Where to.
        config: Settings.
        console: Where to print; the standard output when None.

    Returns:
        What is in `metrics.json`.

    Raises:
        RuntimeError: matplotlib is missing.
        ValueError: an unknown process.
    """
    from fastdiff.cli.demo import swiss_roll_figures as pictures

    config, console = config or SwissRollConfig(), console or Console()
    out, started = Path(folder), time.monotonic()
    diffusion = config.diffusion()
    out.mkdir(parents=True, exist_ok=True)
    console.print("Training on points of a swiss roll in two dimensions; nothing is downloaded.")
    with Bars(console) as bars, _one_thread():
        network, loss = _train(diffusion, config, bars.counting("training", config.steps, "steps"))
        seconds = time.monotonic() - started
        done = bars.working("sampling")
        reverse, times = _reverse(network, diffusion, config)
        done()
        done = bars.working("scoring")
        held_out = roll_points(config.num_points, config.seed + 1)
        bound, exact_bits, ode = _score(network, diffusion, held_out, config)
        edge = torch.linspace(-1.15, 1.15, config.grid)
        grid = torch.cartesian_prod(edge, edge)
        density = -_LN2 * 2 * _ode(network, diffusion, grid, config).total
        done()
        done = bars.working("drawing")
        forward = _forward(diffusion, held_out, config)
        pictures.draw_trajectories(out / "trajectories.png", forward, reverse, times)
        pictures.write_animation(out / "trajectories.gif", reverse, times, config.frames)
        pictures.draw_score(out / "score.png", network, diffusion, forward)
        pictures.draw_density(
            out / "density.png",
            edge.numpy(),
            roll_log_density(grid).reshape(config.grid, config.grid).numpy(),
            density.reshape(config.grid, config.grid).numpy(),
        )
        pictures.draw_bound(out / "bound.png", bound, exact_bits, ode.mean)
        done()
    result = {
        "bound": bound.summary(),
        "ode": ode.summary(),
        "data_bits_per_dim": exact_bits,
        "unit": "bits per dimension, of a density",
        "mean_log_density_of_samples": float(roll_log_density(reverse[-1]).mean()) / _LN2 / 2,
        "loss": loss,
        "training_seconds": seconds,
        "total_seconds": time.monotonic() - started,
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "config": asdict(config),
        "versions": environment.versions(),
    }
    with atomic_file(out / "metrics.json") as file:
        file.write((json.dumps(result, indent=2) + "\n").encode())
    _report(console, out, result)
    return result


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Arithmetic on one thread: layers as small as these take longer on several."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _roll(u: Array) -> Array:
    """[N, 2] points of the roll's middle line for u in [0, 1]."""
    turn = _FIRST_TURN + (_LAST_TURN - _FIRST_TURN) * u
    return np.stack([np.cos(turn), np.sin(turn)], axis=1) * (_RADIUS * turn / _LAST_TURN)[:, None]


def _train(diffusion: Diffusion, config: SwissRollConfig, update: Any) -> tuple[PointNet, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        network = PointNet(config.width, diffusion)
    averaged = PointNet(config.width, diffusion)
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    data = roll_points(20_000, config.seed)
    table = torch.tensor(diffusion.noising_table(), dtype=torch.float32)
    times, density = network_times(diffusion, torch.device("cpu")), _density(diffusion, config)
    loss_sum, count = 0.0, 0
    for step in range(config.steps):
        # Sample n of the training is n, so that noise, time and choice of point are functions of n.
        first = step * config.batch_size
        ids = torch.arange(first, first + config.batch_size)
        if density is None:
            t = torch.from_numpy(integers(config.seed, ids.numpy(), diffusion.num_timesteps, Stream.TRAIN_TIME, 0))
        else:
            t = torch.from_numpy(draw(density, config.seed, 0, ids.numpy()))
        chosen = torch.from_numpy(integers(config.seed, ids.numpy(), len(data), Stream.TRAIN_TIME, 1))
        x_t, target = ops.diffuse(
            data[chosen], t, table, seed=config.seed, sample_ids=ids, row=0, stream=Stream.TRAIN_NOISE
        )
        loss = mse(network(x_t, times[t]), target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            decay = min(0.998, (1 + step) / (10 + step))
            for ours, theirs in zip(averaged.parameters(), network.parameters(), strict=True):
                ours.lerp_(theirs, 1 - decay)
        if step >= config.steps * 0.9:
            loss_sum, count = loss_sum + loss.item(), count + 1
        update(step + 1)
    return averaged.requires_grad_(False).eval(), loss_sum / count


def _density(diffusion: Diffusion, config: SwissRollConfig) -> Array | None:
    """How often each timestep is drawn; None for evenly.

    EDM's as its authors have it. A flow's logit-normal density, made for large images, leaves one draw in nine to the
    levels at which the roll's arms can be told apart.
    """
    return log_normal(diffusion) if config.process == "edm" else None


def _forward(diffusion: Diffusion, points: Tensor, config: SwissRollConfig) -> Tensor:
    """[T + 1, N, 2] the points and every noised state of theirs, along paths of the forward chain."""
    states, x = [points], points
    ids = torch.arange(len(points))
    for t, beta in enumerate(diffusion.schedule.betas):
        table = torch.tensor([[math.sqrt(1 - beta), math.sqrt(beta), 0.0, 0.0]])
        zeros = torch.zeros(len(points), dtype=torch.int64)
        x = ops.diffuse(
            x, zeros, table, seed=config.seed, sample_ids=ids, row=t, stream=Stream.LIKELIHOOD_PATH, target=False
        )[0]
        states.append(x)
    return torch.stack(states)


def _reverse(network: PointNet, diffusion: Diffusion, config: SwissRollConfig) -> tuple[Tensor, list[int]]:
    """[T, N, 2] the states after each step of ancestral sampling, and the timestep that each has reached."""
    states: list[Tensor] = []

    def keep(step: SamplingStep) -> None:
        states.append(step.x.clone())

    table = samplers.ddpm(diffusion, clip=None)
    sample(network, table, shape=(config.num_points, 2), seed=config.seed, progress=False, callback=keep)
    return torch.stack(states), list(range(diffusion.num_timesteps - 2, -2, -1))


def _score(
    network: PointNet, diffusion: Diffusion, held_out: Tensor, config: SwissRollConfig
) -> tuple[likelihood.Bound, float, likelihood.OdeLikelihood]:
    bound = likelihood.bound(
        network, diffusion, held_out, clip=None, decoder="gaussian", seed=config.seed, batch_size=20_000
    )
    exact = -float(roll_log_density(held_out).mean()) / _LN2 / 2
    return bound, exact, _ode(network, diffusion, held_out, config)


def _ode(network: PointNet, diffusion: Diffusion, points: Tensor, config: SwissRollConfig) -> likelihood.OdeLikelihood:
    return likelihood.ode(
        network, diffusion, points, divergence="exact", tolerance=1e-3, batch_size=4096, seed=config.seed
    )


def _report(console: Console, out: Path, result: dict[str, Any]) -> None:
    bound, ode = result["bound"], result["ode"]
    console.print(
        f"\nthe data's entropy       {result['data_bits_per_dim']:.4f} bits/dim (of a density, held-out points)"
    )
    console.print(f"model, probability flow  {ode['bits_per_dim']:.4f} ± {ode['standard_error']:.4f}")
    console.print(f"model, variational bound {bound['bits_per_dim']:.4f} ± {bound['standard_error']:.4f}")
    console.print(f"in all {duration(result['total_seconds'])}\n")
    for name, what in WRITTEN:
        console.print(f"{out / name}  [dim]{what}[/dim]", soft_wrap=True, highlight=False)
