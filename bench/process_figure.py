"""The processes side by side: docs/processes.png.

    python bench/process_figure.py docs/processes.png

Columns are processes. Above, paths of points of a mixture in one dimension, as x_t = alpha x_0 + sigma z has them in
the process's own coordinates; below, alpha and sigma, and the log-SNR, which is all that a sampler needs of either.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from fastdiff import Diffusion, NoiseSchedule
from fastdiff.files.figures import BLUE, ORANGE, add_heading, new_figure

PROCESSES = {
    "variance preserving\ncosine": Diffusion(NoiseSchedule.cosine(400), "v"),
    "variance exploding\ngeometric": Diffusion(NoiseSchedule.variance_exploding(400), "score"),
    "EDM\nx = x_0 + sigma z": Diffusion(NoiseSchedule.edm(400), "x0"),
    "rectified flow\nx = (1 - t) x_0 + t z": Diffusion(NoiseSchedule.flow(400), "velocity"),
    "VDM\nlog-SNR evenly": Diffusion(NoiseSchedule.vdm(400), "eps"),
}
PATHS = 14


def main() -> None:
    """Draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a PNG")
    out = parser.parse_args().out
    rng = np.random.default_rng(0)
    points = np.where(np.arange(PATHS) % 2, 0.7, -0.5) + 0.08 * rng.normal(size=PATHS)
    noise = rng.normal(size=PATHS)
    with new_figure(out, 13.5, 7.2) as figure:
        add_heading(
            figure,
            "Five processes: one family of log-SNR, at five scales",
            "Points of a mixture with their noise; alpha and sigma; half the log-SNR. Across: share of the timesteps.",
        )
        axes = figure.subplots(3, len(PROCESSES), sharex=True)
        figure.subplots_adjust(0.05, 0.06, 0.99, 0.83, wspace=0.28, hspace=0.16)
        for column, (name, diffusion) in zip(axes.T, PROCESSES.items(), strict=True):
            alpha, sigma = (diffusion.input_scale() * part for part in diffusion.signal_noise())
            share = np.linspace(0, 1, diffusion.num_timesteps)
            x = alpha[:, None] * points + sigma[:, None] * noise
            column[0].set_title(name, fontsize=10)
            for path in range(PATHS):
                column[0].plot(share, x[:, path], color=ORANGE if path % 2 else BLUE, linewidth=0.8, alpha=0.8)
            column[1].plot(share, alpha, color=BLUE, label="alpha")
            column[1].plot(share, sigma, color=ORANGE, label="sigma")
            column[2].plot(share, 0.5 * diffusion.schedule.log_snr, color="#444444")
            column[2].set_ylim(-10, 8)
            if sigma[-1] > 2:
                for ax in column[:2]:
                    ax.set_yscale("symlog", linthresh=1.0)
        for ax, label in zip(axes[:, 0], ("x_t", "alpha, sigma", "log(alpha / sigma)"), strict=True):
            ax.set_ylabel(label)
        axes[1, 0].legend(fontsize=9, frameon=False)


if __name__ == "__main__":
    main()
