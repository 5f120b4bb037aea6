"""The drawings of docs/how-it-works.md, made of real objects.

python docs/drawings/draw.py [FOLDER]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle

import fastdiff as fd
from fastdiff.engine import lower
from fastdiff.engine.plan import place

HERE = Path(__file__).parent
# The same bytes from the same matplotlib: no dates, no random names, letters as letters.
STYLE = {"svg.hashsalt": "fastdiff", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
INK, SOFT, STRONG = "#222222", "#c5cae9", "#3949ab"
PROCESS = fd.Diffusion(fd.NoiseSchedule.cosine(1000))


def canvas(width: float, height: float) -> tuple[Figure, Any]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.set_axis_off()
    return figure, axes


def save(figure: Figure, path: Path) -> None:
    figure.savefig(path, transparent=True, metadata={"Date": None})


def draw_table(path: Path) -> None:
    """DPM-Solver++ with ten steps: its rows and the columns that it uses."""
    table = fd.samplers.dpmpp(PROCESS, steps=10)
    names = ("t", "px", "pm", "clip", "cx", "c0", "c1")
    figure, axes = canvas(7.2, 3.6)
    for column, name in enumerate(names):
        values = np.asarray(table[name], dtype=float)
        axes.text(column + 0.5, -0.55, name, ha="center", va="center", weight="bold", color=INK)
        shade = np.abs(values) / max(np.abs(values).max(), 1e-9)
        for row, value in enumerate(values):
            axes.add_patch(
                Rectangle((column, row), 1, 1, facecolor=STRONG, alpha=0.06 + 0.3 * shade[row], edgecolor="white")
            )
            text = f"{value:.0f}" if name == "t" or abs(value) >= 100 else f"{value:.3g}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=INK)
    axes.add_patch(Rectangle((0, 4), len(names), 1, fill=False, edgecolor=STRONG, linewidth=2))
    axes.text(len(names) + 0.2, 4.5, "a row: one evaluation\nof the network, one\nfused step", va="center", color=INK)
    axes.text(len(names) + 0.2, 0.5, "noise", va="center", color=INK)
    axes.text(len(names) + 0.2, 9.5, "image", va="center", color=INK)
    axes.set(xlim=(0, len(names) + 2.6), ylim=(10.1, -1))
    save(figure, path)


def draw_row(path: Path) -> None:
    """What a row of DPM-Solver++ reads and writes, with its numbers; all other columns are 0."""
    table = fd.samplers.dpmpp(PROCESS, steps=10)
    row = 4

    def number(name: str) -> str:
        return f"{float(table[name][row]):.3g}"

    figure, axes = canvas(7.2, 2.9)

    def box(x: float, y: float, text: str, fill: str = SOFT, width: float = 1.5) -> None:
        axes.add_patch(
            FancyBboxPatch(
                (x - width / 2, y - 0.28), width, 0.56, boxstyle="round,pad=0.05", facecolor=fill, edgecolor=STRONG
            )
        )
        axes.text(x, y, text, ha="center", va="center", color=INK)

    def arrow(start: tuple[float, float], end: tuple[float, float], text: str, at: float = 0.5) -> None:
        axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": STRONG})
        x, y = (start[i] + at * (end[i] - start[i]) for i in (0, 1))
        axes.text(x, y + 0.14, text, ha="center", color=INK, fontsize=8)

    box(1, 3.6, "state x")
    box(1, 2.2, "network's m")
    box(1, 0.8, "past image p1")
    box(4.5, 2.2, "predicted image,\nclipped", width=1.9)
    box(8, 2.2, "next state x'")
    arrow((1.8, 3.6), (3.5, 2.4), f"px = {number('px')}", at=0.55)
    arrow((1.8, 2.2), (3.5, 2.2), f"pm = {number('pm')}", at=0.42)
    arrow((1.8, 3.7), (7.2, 2.45), f"cx = {number('cx')}")
    arrow((5.5, 2.2), (7.2, 2.2), f"c0 = {number('c0')}")
    arrow((1.8, 0.7), (7.2, 1.95), f"c1 = {number('c1')}")
    text = f"row {row} of dpmpp with 10 steps, t = {number('t')}: one pass; its prediction is the next row's p1"
    axes.text(4.6, 0, text, ha="center", color=INK)
    axes.set(xlim=(0, 9.2), ylim=(-0.3, 4.1))
    save(figure, path)


def draw_plan(path: Path) -> None:
    """The arena of the digits' network: which buffer lies where, from which instruction to which."""
    plan = lower(fd.UNet(fd.UNetConfig.preset("digits")), 8, 8)
    placement = place(plan, 1)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    for step, instruction in enumerate(plan.instructions):
        for buffer in (*instruction.reads(), *instruction.writes()):
            first.setdefault(buffer, step)
            last[buffer] = step
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.subplots()
    for buffer in first:
        height = plan.buffers[buffer].bytes / 1024
        low, width = placement.places[buffer] / 1024, last[buffer] - first[buffer] + 1
        axes.add_patch(Rectangle((first[buffer], low), width, height, facecolor=SOFT, edgecolor=STRONG, linewidth=0.6))
    axes.set(xlim=(0, len(plan.instructions)), ylim=(0, placement.length / 1024))
    axes.set(xlabel=f"instruction, of {len(plan.instructions)}", ylabel="place in the arena, KiB")
    everything = sum(buffer.bytes for buffer in plan.buffers) / 1024
    axes.set_title(
        f"{len(first)} buffers of {everything:.0f} KiB together in an arena of {placement.length / 1024:.0f} KiB",
        fontsize=9,
    )
    save(figure, path)


def draw_noise(path: Path) -> None:
    """Noise of four samples at five rows: a number for each pixel, of (seed, sample, row) alone."""
    figure, axes = canvas(7.2, 3.3)
    for i, sample in enumerate((16, 17, 18, 19)):
        axes.text(-0.15, i + 0.5, f"sample {sample}", ha="right", va="center", color=INK)
        for row in range(6):
            tile = fd.noise.normals(3, [sample], 64, fd.noise.Stream.SAMPLING, row).reshape(8, 8)
            axes.imshow(tile, extent=(row + 0.05, row + 0.95, i + 0.95, i + 0.05), cmap="Purples", vmin=-2.5, vmax=2.5)
    for row in range(6):
        axes.text(row + 0.5, -0.2, f"row {row}", ha="center", color=INK)
    axes.add_patch(Rectangle((0, 1), 6, 1, fill=False, edgecolor=STRONG, linewidth=2))
    axes.text(6.15, 1.5, "sample 17 of seed 3\nhas this noise in any\nbatch, on any machine", va="center", color=INK)
    axes.set(xlim=(-1.3, 8.4), ylim=(4.05, -0.5), aspect="equal")
    save(figure, path)


DRAWINGS = {"table": draw_table, "row": draw_row, "plan": draw_plan, "noise": draw_noise}


def main(folder: Path) -> None:
    """Write all drawings into the folder."""
    with rc_context(STYLE):
        for name, draw in DRAWINGS.items():
            draw(folder / f"{name}.svg")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
