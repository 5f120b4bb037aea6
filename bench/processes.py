"""Which sampler, how many steps: trained networks on each process, and what every solver makes of them.

    python bench/processes.py bench/results/processes.json

A small network is trained on the 8x8 digits for each process with the predictions that people train it for: 3,000 steps
of its authors' density of levels. The number is the Fréchet distance of 1,797 samples, not clamped, to the images, in
`fastdiff.evaluation.metrics.dct_features`; "-" stands for what is no distribution near the data any more.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastdiff import Diffusion, NoiseSchedule, ops, sample, samplers
from fastdiff.cli.environment import versions
from fastdiff.evaluation import metrics
from fastdiff.files import data
from fastdiff.process.noise import Stream
from fastdiff.training.densities import draw, log_normal

PROCESSES = {
    "linear, eps": Diffusion(NoiseSchedule.linear(1000), "eps"),
    "linear, v": Diffusion(NoiseSchedule.linear(1000), "v"),
    "cosine, eps": Diffusion(NoiseSchedule.cosine(1000), "eps"),
    "cosine, x0": Diffusion(NoiseSchedule.cosine(1000), "x0"),
    "cosine, v": Diffusion(NoiseSchedule.cosine(1000), "v"),
    "EDM, F": Diffusion(NoiseSchedule.edm(1000), "F", sigma_data=0.7),
    "flow, velocity": Diffusion(NoiseSchedule.flow(1000), "velocity"),
}
SAMPLERS = (
    "ddpm", "ddim", "euler_ancestral", "dpmpp", "dpmpp_3m", "dpmpp_sde", "dpmpp_singlestep", "unipc", "dpm_solver",
    "dpm_solver_singlestep", "deis", "lms", "ipndm", "plms", "pndm", "heun", "dpm2", "dpm2_ancestral",
    "dpmpp_sde_singlestep", "edm",
)  # fmt: skip
STEPS = (5, 10, 20, 50)
# No distribution of images in [-1, 1] is so far from another.
RUN_AWAY = 100.0


class Denoiser(nn.Module):
    """A multi-layer perceptron on images of 64 pixels, told the time by its share of the schedule's range."""

    def __init__(self, diffusion: Diffusion, width: int = 384) -> None:
        super().__init__()
        times = diffusion.schedule.timesteps
        self.start, self.length = float(times[0]), float(times[-1] - times[0])
        self.first, self.last = nn.Linear(64 + 16, width), nn.Linear(width, 64)
        self.hidden = nn.ModuleList(nn.Linear(width + 16, width) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        octaves = 2.0 ** torch.arange(8) * (math.pi / 2)
        angles = ((t.to(x.dtype) - self.start) / self.length)[:, None] * octaves
        told = torch.cat([angles.sin(), angles.cos()], dim=1)
        h = self.first(torch.cat([x.flatten(1), told], dim=1))
        for layer in self.hidden:
            h = h + layer(torch.cat([nn.functional.silu(h), told], dim=1))
        out: Tensor = self.last(nn.functional.silu(h))
        return out.reshape(x.shape)


def train(diffusion: Diffusion, images: Tensor, steps: int) -> Denoiser:
    """The averaged network after `steps` steps."""
    torch.manual_seed(0)
    network, averaged = Denoiser(diffusion), Denoiser(diffusion)
    averaged.load_state_dict(network.state_dict())
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    table = torch.tensor(diffusion.noising_table(), dtype=torch.float32)
    times = torch.tensor(diffusion.schedule.timesteps, dtype=torch.float32)
    num = diffusion.num_timesteps
    density = log_normal(diffusion) if diffusion.prediction == "F" else np.ones(num)
    for step in range(steps):
        ids = torch.arange(256) + 256 * step
        t = torch.from_numpy(draw(density, 0, 0, ids.numpy()))
        chosen = images[torch.randint(len(images), (256,))]
        x_t, target = ops.diffuse(chosen, t, table, seed=0, sample_ids=ids, row=0, stream=Stream.TRAIN_NOISE)
        loss = (network(x_t, times[t]) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        with torch.no_grad():
            for ours, theirs in zip(averaged.parameters(), network.parameters(), strict=True):
                ours.lerp_(theirs, 1 - min(0.999, (1 + step) / (10 + step)))
    return averaged.requires_grad_(False).eval()


def measured(
    network: Denoiser, diffusion: Diffusion, real: Any, count: int, names: Sequence[str], unclipped: bool = False
) -> dict[str, list[Any]]:
    """By sampler, a distance for each number of steps; None where samples ran away."""
    found: dict[str, list[Any]] = {}
    for name in names:
        found[name] = []
        for steps in STEPS:
            options = {"clip": None} if unclipped else {}
            table = samplers.build(name, diffusion, steps, **options)
            x = sample(network, table, shape=(count, 1, 8, 8), progress=False).numpy()
            far = not np.isfinite(x).all() or np.abs(x).max() > RUN_AWAY
            distance = None if far else metrics.frechet_distance(metrics.dct_features(x), real)
            found[name].append(None if distance is None or distance > RUN_AWAY else round(distance, 3))
    return found


def to_markdown(result: dict[str, dict[str, list[Any]]]) -> str:
    """A table for the documentation: the distance with 5, 10, 20 and 50 evaluations."""
    lines = ["| sampler | " + " | ".join(result) + " |", "|---" * (len(result) + 1) + "|"]
    for name in next(iter(result.values())):
        cells = [", ".join("-" if value is None else f"{value:.2g}" for value in one[name]) for one in result.values()]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    """Train, measure, and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a JSON file")
    parser.add_argument("--steps", type=int, default=3000, help="of training")
    parser.add_argument("--count", type=int, default=1797, help="samples of each")
    parser.add_argument("--samplers", nargs="*", default=list(SAMPLERS), help="their names")
    parser.add_argument("--only", nargs="*", default=list(PROCESSES), help="processes")
    parser.add_argument("--unclipped", action="store_true", help="with clip=None, for --samplers that take it")
    given = parser.parse_args()
    torch.set_num_threads(1)
    digits = data.digits("all")
    images = digits.scaling.to_model(digits.images).float()
    real = metrics.dct_features(images.numpy())
    result: dict[str, dict[str, list[Any]]] = {}
    for name in given.only:
        network = train(PROCESSES[name], images, given.steps)
        result[name] = measured(network, PROCESSES[name], real, given.count, given.samplers, given.unclipped)
        print(name, json.dumps(result[name]), flush=True)
    written = {"distance": result, "steps": STEPS, "training_steps": given.steps, "versions": versions()}
    given.out.write_text(json.dumps(written, indent=1) + "\n")
    print(to_markdown(result))


if __name__ == "__main__":
    main()
