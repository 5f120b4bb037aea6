"""Pictures of the two-dimensional demonstration. Needs matplotlib (extra "demo" or "plot")."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from fastdiff.files.atomic import atomic_path
from fastdiff.files.figures import (
    BLUE,
    ORANGE,
    add_heading,
    new_figure,
)
from fastdiff.likelihood import Bound
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import Array
from fastdiff.sampling.views import Views

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw_bound", "draw_density", "draw_score", "draw_trajectories", "write_animation"]

_REACH = 2.4
_LINES = 6


def draw_trajectories(path: Path, forward: Tensor, reverse: Tensor, times: Sequence[int]) -> Path:
    """Columns are time; above the forward process, below the reverse process at the same times.

    Args:
        path: PNG to write.
        forward: [T + 1, N, 2], from data to noise.
        reverse: [T, N, 2], after each step from noise to data.
        times: Timestep that each reverse state has reached; -1 is data.
    """
    last = len(forward) - 1
    shares = (0.0, 0.1, 0.25, 0.45, 0.7, 1.0)
    columns = [round(share * last) for share in shares]
    with new_figure(path, 13.0, 5.4) as figure:
        add_heading(figure, "The swiss roll and noise, in both directions", "Lines are the paths of single points.")
        axes = figure.subplots(2, len(columns))
        figure.subplots_adjust(0.035, 0.02, 0.995, 0.84, wspace=0.04, hspace=0.06)
        # Reverse state i has seen i + 1 steps, so it lies at forward level T - 1 - i.
        by_level = {level: reverse[len(reverse) - 1 - level] for level in range(len(reverse))}
        for column, level in enumerate(columns):
            title = "data" if level == 0 else f"after {level} steps" if level < last else f"after {level} steps: noise"
            axes[0, column].set_title(title, fontsize=10)
            _points(axes[0, column], forward[level], BLUE)
            _paths(axes[0, column], forward[: level + 1])
            _points(axes[1, column], by_level.get(level, reverse[0]), ORANGE)
            _paths(axes[1, column], reverse[: len(reverse) - level])
        axes[0, 0].set_ylabel("forward: noising →")
        axes[1, 0].set_ylabel("← reverse: sampling")
    return path


def write_animation(path: Path, reverse: Tensor, times: Sequence[int], frames: int) -> Path:
    """The reverse process as a GIF that repeats for ever."""
    chosen = np.unique(np.linspace(0, len(reverse) - 1, min(frames, len(reverse))).round().astype(int))
    pictures = []
    with new_figure(None, 4.4, 4.6) as figure:
        ax = figure.add_axes((0.02, 0.02, 0.96, 0.9))
        for i in chosen:
            ax.clear()
            _points(ax, reverse[i], ORANGE)
            ax.set_title("a sample of the swiss roll" if times[i] < 0 else f"t = {times[i]}", fontsize=11)
            figure.canvas.draw()
            # The canvas is matplotlib's Agg, whose buffer mypy does not know.
            pixels = np.asarray(figure.canvas.buffer_rgba())  # type: ignore[attr-defined]
            pictures.append(
                Image.fromarray(pixels).convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE, colors=32)
            )
    durations = [90] * (len(pictures) - 1) + [2500]
    with atomic_path(path) as partial:
        pictures[0].save(partial, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def draw_score(path: Path, network: nn.Module, diffusion: Diffusion, forward: Tensor) -> Path:
    """The learned score as arrows at three noise levels, over noised data."""
    last = diffusion.num_timesteps - 1
    edge = torch.linspace(-1.3, 1.3, 25)
    grid = torch.cartesian_prod(edge, edge)
    views = Views(network, diffusion)
    with new_figure(path, 12.6, 4.8) as figure:
        add_heading(
            figure, "The learned score", "Arrows point where the noised density grows; their length is sigma |score|."
        )
        axes = figure.subplots(1, 3)
        figure.subplots_adjust(0.01, 0.02, 0.99, 0.82, wspace=0.03)
        for ax, share in zip(axes, (0.03, 0.12, 0.4), strict=True):
            t = round(share * last)
            # eps = -sigma score has one length at all levels.
            with torch.no_grad():
                arrows = -views.eps(grid, float(diffusion.schedule.timesteps[t]))
            _points(ax, forward[t + 1], BLUE, reach=1.4, alpha=0.4)
            ax.quiver(grid[:, 0], grid[:, 1], arrows[:, 0], arrows[:, 1], color="#222222", width=0.0028, scale=60)
            sigma = float(np.sqrt(diffusion.schedule.one_minus_alphas_cumprod[t]))
            ax.set_title(f"t = {t}, sigma = {sigma:.2f}", fontsize=10)
    return path


def draw_density(path: Path, edge: Array, exact: Array, learned: Array) -> Path:
    """The data's log-density and the model's as heat maps, [G, G] each, first index x."""
    with new_figure(path, 10.8, 5.2) as figure:
        add_heading(
            figure,
            "Log-density, in nats: the data's own, and the model's by the probability-flow ODE",
            "Every pixel of the right panel is one exact likelihood; far from the data both are cut off at -12.",
        )
        axes = figure.subplots(1, 2)
        figure.subplots_adjust(0.01, 0.03, 0.9, 0.83, wspace=0.04)
        top = float(np.nanmax(exact))
        extent = (float(edge[0]), float(edge[-1]), float(edge[0]), float(edge[-1]))
        for ax, values, title in ((axes[0], exact, "exact"), (axes[1], learned, "learned")):
            image = ax.imshow(
                np.clip(values, -12, None).T, origin="lower", extent=extent, vmin=-12, vmax=top, cmap="magma"
            )
            ax.set_title(title, fontsize=10)
            ax.set_xticks([])
            ax.set_yticks([])
        figure.colorbar(image, cax=figure.add_axes((0.92, 0.06, 0.018, 0.74)))
    return path


def draw_bound(path: Path, bound: Bound, exact_bits: float, ode_bits: float) -> Path:
    """The bound's terms by timestep, and the totals beside the data's entropy."""
    terms = bound.mean_terms.numpy()
    with new_figure(path, 11.0, 4.6) as figure:
        add_heading(
            figure,
            f"Bound {bound.mean:.3f}, probability flow {ode_bits:.3f}, entropy of the data {exact_bits:.3f} bits/dim",
            "Held-out points; of a density, so bits/dim may be negative. Nothing can be below the entropy on average.",
        )
        left, right = figure.subplots(1, 2, width_ratios=(1.6, 1))
        figure.subplots_adjust(0.075, 0.13, 0.985, 0.8, wspace=0.22)
        t = np.arange(1, len(terms))
        left.plot(t + 1, np.where(terms[1:] > 0, terms[1:], np.nan), color=BLUE, linewidth=1.8)
        left.set_xscale("log")
        left.set_yscale("log")
        left.set_xlabel("timestep t + 1")
        left.set_ylabel("KL term, bits/dim")
        left.grid(True, color="#e6e6e6", linewidth=0.8)
        names = ["data's\nentropy", "probability\nflow", "variational\nbound"]
        values = [exact_bits, ode_bits, bound.mean]
        bars = right.bar(names, values, color=["#9aa3ad", ORANGE, BLUE], width=0.6)
        right.bar_label(bars, fmt="%.3f", padding=3)
        right.axhline(0, color="black", linewidth=0.8)
        right.axhline(exact_bits, color="#9aa3ad", linewidth=1, linestyle="--")
        right.margins(y=0.18)
        right.set_ylabel("bits/dim")
    return path


def _points(ax: Axes, points: Tensor, color: str, reach: float = _REACH, alpha: float = 0.5) -> None:
    ax.scatter(points[:, 0], points[:, 1], s=2.0, color=color, alpha=alpha, linewidths=0)
    ax.set_xlim(-reach, reach)
    ax.set_ylim(-reach, reach)
    ax.set_aspect("equal")
    ax.set_xticks([])
    ax.set_yticks([])


def _paths(ax: Axes, states: Tensor) -> None:
    for point in range(min(_LINES, states.shape[1])):
        ax.plot(states[:, point, 0], states[:, point, 1], color="#444444", linewidth=0.5, alpha=0.6)
