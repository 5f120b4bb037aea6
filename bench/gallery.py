"""Every sampler on the digits model: docs/samplers.png, and the table in docs/samplers.md.

    python bench/gallery.py out/demo

Rows are samplers, columns numbers of network evaluations, all from the same noise. Beside them, the Fréchet distance of
1,000 samples to the training images against the evaluations (see `fastdiff.evaluation.metrics.dct_features`).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from rich.console import Console
from torch import Tensor

from fastdiff import load_model, sample, samplers
from fastdiff.cli.progress import Bars
from fastdiff.evaluation import metrics
from fastdiff.files import data
from fastdiff.files.checkpoint import LoadedModel
from fastdiff.likelihood import estimate
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers.catalogue import to_markdown
from fastdiff.samplers.registry import SAMPLERS

ROOT = Path(__file__).parent.parent
STEPS = (4, 8, 16, 32, 64)
SHOWN = 6
BATCH = 250
# In the plot, samplers that are alike share a panel.
PANELS = {
    "ancestral, DDIM, Analytic-DPM": ("ddpm", "ddim", "analytic_ddpm", "analytic_ddim", "euler_ancestral"),
    "DPM-Solver": ("ddim", "dpm_solver", "dpm_solver_singlestep", "dpmpp", "dpmpp_3m", "dpmpp_singlestep", "dpmpp_sde"),
    "multistep on the noise": ("ddim", "unipc", "deis", "lms", "ipndm", "plms", "pndm"),
    "two stages": ("ddim", "heun", "dpm2", "dpm2_ancestral", "dpmpp_sde_singlestep", "edm"),
    "Langevin, jumps, editing": (
        "ddpm",
        "annealed_langevin",
        "predictor_corrector",
        "repaint",
        "renoise",
        "ddim_encode",
    ),
}
NOTE = (
    "Each row is a sampler, each block of six the same six samples (same noise) with that many network evaluations; "
    "repaint takes more, for its jumps. renoise starts from held-out images,\nnoised half of the way up; ddim_encode "
    "shows them encoded and decoded again; langevin stays at one noise level."
)


def main() -> None:
    """Read the options, and write what they ask for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("model", type=Path, help="the demonstration's folder")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "samplers.png")
    parser.add_argument("--num", type=int, default=1000, help="samples for the Fréchet distance")
    options = parser.parse_args()
    gallery = Gallery(load_model(options.model), options.num)
    names = samplers.names(with_statistics=True)
    shown: dict[tuple[str, int], Tensor] = {}
    distances: dict[str, dict[int, float]] = {}
    with Bars(Console()) as bars:
        update = bars.counting("sampling", len(names) * len(STEPS), "columns")
        for name in names:
            for steps in STEPS:
                images = gallery.images(name, steps)
                shown[name, steps] = images[:SHOWN]
                distances.setdefault(name, {})[steps] = gallery.distance(images)
                update(sum(map(len, distances.values())))
    draw(options.out, names, shown, distances, gallery.held_out_distance)
    options.out.with_suffix(".json").write_text(json.dumps(distances, indent=1) + "\n")
    print(options.out)
    if options.out.parent == ROOT / "docs":
        write_table(ROOT / "docs" / "samplers.md")


class Gallery:
    """Samples of one model, and their distance to its training images."""

    def __init__(self, model: LoadedModel, num: int) -> None:
        self.model, self.num = model, num
        train, held_out = data.digits("train"), data.digits("test")
        self.train = train
        self.held_out = held_out.to_model(held_out.images)
        self.features = metrics.dct_features(train.to_model(train.images).numpy())
        self.held_out_distance = self.distance(self.held_out)
        self.eps_moment = estimate.eps_moment(
            model.unet, model.diffusion, train.to_model(train.images[:300]), levels=17
        )

    def images(self, name: str, steps: int) -> Tensor:
        """Samples 0, 1, 2, ... as pixel values of the data, in [-1, 1]."""
        table = self.table(name, steps)
        x = self.held_out.repeat(-(-self.num // len(self.held_out)), 1, 1, 1)[: self.num]
        out = self.run(table, x if table.init_scale == 0 else None)
        if name == "ddim_encode":
            out = self.run(samplers.ddim(self.model.diffusion, steps, clip=None), out)
        return self.train.to_model(self.train.scaling.to_values(out))

    def table(self, name: str, steps: int) -> CoefficientTable:
        """The sampler's table for that many evaluations."""
        options: dict[str, Any] = {}
        known = SAMPLERS[name].parameters
        if "eps_moment" in known:
            options["eps_moment"] = self.eps_moment
        if name == "renoise":
            options["timestep"] = max(steps, self.model.diffusion.num_timesteps // 2) - 1
        return samplers.build(name, self.model.diffusion, steps, **options)

    def run(self, table: CoefficientTable, x_init: Tensor | None) -> Tensor:
        """The end of the table, for all samples."""
        parts = []
        for first in range(0, self.num, BATCH):
            ids = range(first, min(first + BATCH, self.num))
            init = None if x_init is None else x_init[ids.start : ids.stop]
            shape = (len(ids), *self.train.shape)
            parts.append(
                sample(self.model.unet, table, shape=shape, sample_ids=ids, x_init=init, progress=False).clamp(-8, 8)
            )
        return torch.cat(parts)

    def distance(self, images: Tensor) -> float:
        """Fréchet distance to the training images."""
        return metrics.frechet_distance(metrics.dct_features(images.numpy()), self.features)


def draw(
    path: Path,
    names: list[str],
    shown: dict[tuple[str, int], Tensor],
    distances: dict[str, dict[int, float]],
    held_out: float,
) -> None:
    """The picture."""
    height = 0.42 * len(names) + 1.1
    figure = Figure(figsize=(20, height), dpi=80, facecolor="white")
    FigureCanvasAgg(figure)
    top, bottom = 1 - 0.85 / height, 0.15 / height
    figure.text(0.01, 1 - 0.3 / height, "Samplers on the digits model", fontsize=15, weight="bold", va="center")
    figure.text(0.01, 1 - 0.58 / height, NOTE, fontsize=8.5, color="#444444", va="center")
    grid = figure.add_gridspec(
        len(names), len(STEPS), left=0.105, right=0.7, top=top - 0.2 / height, bottom=bottom, hspace=0.12, wspace=0.06
    )
    for i, name in enumerate(names):
        for j, steps in enumerate(STEPS):
            ax = figure.add_subplot(grid[i, j])
            strip = np.concatenate(
                [np.pad(image.numpy()[0], ((0, 0), (0, 1)), constant_values=1) for image in shown[name, steps]], axis=1
            )
            ax.imshow(strip, cmap="gray", vmin=-1, vmax=1, interpolation="nearest", aspect="auto")
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            if i == 0:
                ax.set_title(f"{steps} evaluations", fontsize=10)
            if j == 0:
                ax.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=10)
    panels = figure.add_gridspec(
        len(PANELS), 1, left=0.745, right=0.99, top=top - 0.1 / height, bottom=bottom + 0.4 / height, hspace=0.28
    )
    for i, (title, members) in enumerate(PANELS.items()):
        ax = figure.add_subplot(panels[i])
        for name in members:
            ax.plot(list(distances[name]), list(distances[name].values()), marker="o", ms=3, lw=1.3, label=name)
        ax.axhline(held_out, color="#888888", lw=0.8, ls="--")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_ylim(0.1, 20)
        ax.set_xticks(STEPS, [str(n) for n in STEPS])
        ax.minorticks_off()
        ax.set_title(f"Fréchet distance: {title}", fontsize=9.5, loc="left")
        ax.legend(fontsize=7, ncols=2)
        if i == len(PANELS) - 1:
            ax.set_xlabel("network evaluations; dashed: the held-out digits")
    figure.savefig(path)


def write_table(page: Path) -> None:
    """Put the table of all samplers between its marks in the documentation."""
    text = page.read_text(encoding="utf-8")
    begin, end = "<!-- samplers -->\n", "<!-- end of samplers -->\n"
    before, rest = text.split(begin)
    page.write_text(before + begin + to_markdown() + end + rest.split(end)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
