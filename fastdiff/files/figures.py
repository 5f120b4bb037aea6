"""Pictures for people: training curves, the bound, denoising, nearest neighbours.

Needs matplotlib (extra "demo" or "plot"); the animation and the grids need Pillow alone. Images come as uint8 0..255 or
float in [-1, 1], [N, 1 or 3, H, W].
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from fastdiff.files.atomic import atomic_path
from fastdiff.files.images import to_uint8

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

    from fastdiff.process.table import CoefficientTable

__all__ = [
    "DenoisingFrames",
    "plot_bound",
    "plot_denoising",
    "plot_loss",
    "plot_nearest",
    "plot_rate_distortion",
    "plot_samples",
    "plot_table",
    "write_denoising_gif",
]

Array = npt.NDArray[np.float64]
_DPI = 110
BLUE, ORANGE, _GREY = "#1f5fa8", "#d1660a", "#9aa3ad"


@dataclass(frozen=True, eq=False)
class DenoisingFrames:
    """States on the way from noise to images.

    Attributes:
        times: The timestep that each frame's state has reached, decreasing; -1 is the image.
        noise: Standard deviation of the noise in the state, sigma_t, for each frame.
        states: [F, N, C, H, W], x_t scaled so that its variance is that of the noise or the data.
        predictions: [F, N, C, H, W], the x_0 that was predicted last.
    """

    times: Sequence[int]
    noise: Sequence[float]
    states: Tensor
    predictions: Tensor

    def __post_init__(self) -> None:
        if self.states.ndim != 5 or self.states.shape != self.predictions.shape:
            raise ValueError(
                "states and predictions must be [F, N, C, H, W] of one shape, got "
                f"{list(self.states.shape)} and {list(self.predictions.shape)}"
            )
        if not len(self.times) == len(self.noise) == len(self.states) > 0:
            raise ValueError(f"there must be one time and one noise for each of the {len(self.states)} frames")

    def pick(self, count: int) -> DenoisingFrames:
        """`count` frames, evenly from the first to the last; all of them where there are fewer."""
        chosen = np.unique(np.linspace(0, len(self.times) - 1, min(count, len(self.times))).round().astype(int))
        return DenoisingFrames(
            [self.times[i] for i in chosen],
            [self.noise[i] for i in chosen],
            self.states[torch.from_numpy(chosen)],
            self.predictions[torch.from_numpy(chosen)],
        )


def plot_samples(
    path: str | Path, images: Tensor, *, labels: Sequence[str], columns: int = 12, title: str = "", note: str = ""
) -> Path:
    """A grid of samples with a label below each.

    Args:
        path: PNG to write.
        images: [N, 1 or 3, H, W].
        labels: N short texts.
        columns: Images in a row.
        title: Above the grid.
        note: A smaller line below the title.
    """
    if len(labels) != len(images):
        raise ValueError(f"labels must be one per image, got {len(labels)} for {len(images)} images")
    pixels = _pictures(images)
    columns = min(columns, len(pixels))
    rows = -(-len(pixels) // columns)
    with new_figure(path, 0.92 * columns + 0.3, 1.1 * rows + 0.75) as figure:
        add_heading(figure, title, note)
        axes = _grid(figure, rows, columns, top=1 - 0.68 / (1.1 * rows + 0.75), hspace=0.27, wspace=0.08)
        for index, ax in enumerate(axes.flat):
            if index < len(pixels):
                _show(ax, pixels[index])
                ax.set_xlabel(labels[index], fontsize=9, labelpad=2)
            else:
                ax.set_axis_off()
    return Path(path)


def plot_table(path: str | Path, table: CoefficientTable) -> Path:
    """The coefficients of a sampler, and the noise levels that it visits where it says so, against the row.

    Args:
        path: PNG to write.
        table: The sampler.
    """
    with new_figure(path, 10.0, 4.0) as figure:
        left, right = figure.subplots(1, 2)
        figure.subplots_adjust(0.07, 0.13, 0.98, 0.9, wspace=0.22)
        table.plot(left)
        if np.asarray(table.alphas).size:
            table.plot_levels(right)
            right.set_title("the state's noise level")
        else:
            right.set_axis_off()
    return Path(path)


def plot_nearest(
    path: str | Path,
    samples: Tensor,
    neighbours: Tensor,
    distances: npt.ArrayLike,
    *,
    groups: Sequence[tuple[str, Sequence[int]]],
    title: str = "",
    note: str = "",
) -> Path:
    """Samples beside their nearest training images, in blocks side by side.

    Args:
        path: PNG to write.
        samples: [N, C, H, W].
        neighbours: [N, K, C, H, W], the nearest first.
        distances: [N, K].
        groups: (heading, numbers of samples) of each block; blocks have the same number of samples.
        title: Above the blocks.
        note: A smaller line below the title.
    """
    distance = np.asarray(distances, dtype=np.float64)
    if neighbours.shape[:2] != distance.shape or len(neighbours) != len(samples):
        raise ValueError(f"neighbours and distances must be [{len(samples)}, K], got {distance.shape}")
    count = distance.shape[1]
    rows = max(len(members) for _, members in groups)
    width, height = len(groups) * (0.95 * (count + 1) + 0.45), 1.12 * rows + 1.0
    with new_figure(path, width, height) as figure:
        add_heading(figure, title, note)
        for block, (heading, members) in enumerate(groups):
            left = (block + 0.04) / len(groups)
            right = (block + 0.96) / len(groups)
            axes = _grid(
                figure, rows, count + 1, left=left, right=right, top=1 - 0.98 / height, hspace=0.27, wspace=0.1
            )
            figure.text((left + right) / 2, 1 - 0.72 / height, heading, ha="center", va="center", fontsize=10)
            for row, member in enumerate(members):
                _show(axes[row, 0], _pictures(samples[member][None])[0], edge=ORANGE)
                axes[row, 0].set_xlabel(f"sample {member}", fontsize=8, labelpad=2)
                for k in range(count):
                    _show(axes[row, k + 1], _pictures(neighbours[member, k][None])[0])
                    axes[row, k + 1].set_xlabel(f"train, {distance[member, k]:.2f}", fontsize=8, labelpad=2)
            for ax in axes[len(members) :].flat:
                ax.set_axis_off()
    return Path(path)


def plot_denoising(
    path: str | Path, frames: DenoisingFrames, *, labels: Sequence[str] = (), title: str = "", note: str = ""
) -> Path:
    """Rows are samples, columns are time: the state on the left, the predicted image on the right."""
    num_frames, num_samples = frames.states.shape[:2]
    margin = 0.25 + 0.065 * max((len(label) for label in labels), default=0)
    width, height = 2 * 0.72 * num_frames + 0.7 + margin, 0.72 * num_samples + 1.3
    with new_figure(path, width, height) as figure:
        add_heading(figure, title, note)
        edge = margin / width
        blocks = (("the state $x_t$", frames.states), ("the predicted image $x_0$", frames.predictions))
        for block, (heading, images) in enumerate(blocks):
            left = edge + block * (1 - edge) / 2
            right = left + (1 - edge) / 2 - 0.25 / width
            axes = _grid(
                figure, num_samples, num_frames, left=left, right=right, top=1 - 1.02 / height, hspace=0.06, wspace=0.06
            )
            figure.text((left + right) / 2, 1 - 0.76 / height, heading, ha="center", va="center", fontsize=10)
            for row in range(num_samples):
                for column in range(num_frames):
                    _show(axes[row, column], _pictures(images[column, row][None])[0])
                if block == 0 and labels:
                    axes[row, 0].set_ylabel(labels[row], fontsize=8, rotation=0, ha="right", va="center", labelpad=6)
            for column, t in enumerate(frames.times):
                text = "image" if t < 0 else f"t = {t}"
                axes[-1, column].set_xlabel(text, fontsize=7.5, labelpad=3)
    return Path(path)


def plot_loss(path: str | Path, steps: npt.ArrayLike, losses: npt.ArrayLike, *, title: str, note: str = "") -> Path:
    """The training loss, on a log axis, against the step, with its running median."""
    x, y = np.asarray(steps, dtype=np.float64), np.asarray(losses, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise ValueError(f"steps and losses must be lists of one length, got {x.shape} and {y.shape}")
    with new_figure(path, 7.5, 4.6) as figure:
        add_heading(figure, title, note)
        ax = figure.add_axes((0.1, 0.13, 0.87, 0.69))
        ax.plot(
            x, y, color=_GREY, linewidth=0.9, marker="." if len(x) < 30 else None, label="mean since the last entry"
        )
        if len(x) >= 12:
            reach = max(2, len(x) // 40)
            smooth = [float(np.median(y[max(0, i - reach) : i + reach + 1])) for i in range(len(y))]
            ax.plot(x, smooth, color=BLUE, linewidth=2, label="running median")
            ax.legend(frameon=False)
        ax.set_yscale("log")
        plain_log_ticks(ax.yaxis, y)
        ax.set_xlabel("training step")
        ax.set_ylabel("loss")
        _tidy(ax)
    return Path(path)


def plot_bound(path: str | Path, terms: npt.ArrayLike, *, title: str, note: str = "", unit: str = "bits/dim") -> Path:
    """The variational bound by timestep: each term, and their sum so far.

    Args:
        path: PNG to write.
        terms: [T], mean over the images; entry 0 is the decoder's term. NaN where a term is not known.
        title: With the totals.
        note: A smaller line below the title.
        unit: Of the terms.
    """
    values = np.asarray(terms, dtype=np.float64)
    if values.ndim != 1 or values.size == 0:
        raise ValueError(f"terms must be [T], got shape {list(values.shape)}")
    t = np.arange(len(values)) + 1
    known = np.isfinite(values)
    if not known.any():
        raise ValueError("terms must hold at least one number")
    # Between the terms that were evaluated, a straight line.
    summed = np.cumsum(np.interp(t, t[known], values[known]))
    with new_figure(path, 8.2, 4.8) as figure:
        add_heading(figure, title, note)
        ax = figure.add_axes((0.12, 0.12, 0.79, 0.65))
        positive = np.where(values > 0, values, np.nan)
        shown = np.flatnonzero(known[1:]) + 1
        marker = None if known.all() else "."
        ax.plot(t[shown], positive[shown], color=BLUE, linewidth=1.8, marker=marker, label="KL term of step t")
        ax.plot(t[:1], positive[:1], color=ORANGE, marker="o", linestyle="none", label="decoder (t = 0)")
        ax.set_xscale("log")
        if np.isfinite(positive).any():
            ax.set_yscale("log")
        ax.set_xlabel("timestep t + 1 (left: hardly any noise; right: nothing but noise)")
        ax.set_ylabel(f"{unit} per step")
        _tidy(ax)
        total = ax.twinx()
        total.plot(t, summed, color=_GREY, linewidth=1.8, linestyle="--", label="sum up to step t (right axis)")
        total.set_ylim(bottom=0)
        total.set_ylabel(f"{unit}, summed")
        total.spines["top"].set_visible(False)
        lines = [*ax.get_lines(), *total.get_lines()]
        ax.legend(
            lines,
            [str(line.get_label()) for line in lines],
            frameon=False,
            loc="lower center",
            bbox_to_anchor=(0.5, 1.0),
            ncols=3,
        )
    return Path(path)


def plot_rate_distortion(
    path: str | Path, rates: npt.ArrayLike, rmses: npt.ArrayLike, *, peak: float, title: str, note: str = ""
) -> Path:
    """How good an image is after so many bits: the error of the predicted image, and the rate, by step.

    Args:
        path: PNG to write.
        rates: [T] bits/dim sent so far, from nothing on.
        rmses: [T] root mean square error of the image that is predicted then.
        peak: Largest value of the scale of the errors.
        title: With the total.
        note: A smaller line below the title.
    """
    x, y = np.asarray(rates, dtype=np.float64), np.asarray(rmses, dtype=np.float64)
    if x.shape != y.shape or x.ndim != 1 or x.size == 0:
        raise ValueError(f"rates and rmses must be lists of one length, got {x.shape} and {y.shape}")
    done = (np.arange(len(x)) + 1) / len(x)
    with new_figure(path, 11.0, 4.2) as figure:
        add_heading(figure, title, note)
        axes = figure.subplots(1, 3)
        figure.subplots_adjust(0.06, 0.14, 0.99, 0.8, wspace=0.26)
        error = f"error of the predicted image (0 to {peak:g})"
        for ax, across, up, labels in (
            (axes[0], done, y, ("share of the steps done", error)),
            (axes[1], done, x, ("share of the steps done", "bits/dim sent")),
            (axes[2], x, y, ("bits/dim sent", error)),
        ):
            ax.plot(across, up, color=BLUE, linewidth=1.8, marker="." if len(x) < 30 else None)
            ax.set_xlabel(labels[0])
            ax.set_ylabel(labels[1])
            ax.set_ylim(bottom=0)
            _tidy(ax)
    return Path(path)


def write_denoising_gif(
    path: str | Path,
    frames: DenoisingFrames,
    *,
    columns: int = 5,
    tile: int = 96,
    milliseconds: int = 60,
    hold_milliseconds: int = 2000,
) -> Path:
    """An animation of the states, with a bar that shows how much noise is left; it repeats for ever.

    Args:
        path: GIF to write.
        frames: What to show, noise first.
        columns: Images in a row.
        tile: Side of an image in pixels, at least.
        milliseconds: How long each frame stays.
        hold_milliseconds: How long the last one stays.
    """
    num_samples = frames.states.shape[1]
    scale = max(1, tile // max(frames.states.shape[-2:]))
    tile_height, tile_width = frames.states.shape[-2] * scale, frames.states.shape[-1] * scale
    columns = min(columns, num_samples)
    rows = -(-num_samples // columns)
    pad, footer = 6, 30
    width, height = columns * (tile_width + pad) + pad, rows * (tile_height + pad) + pad + footer
    font = ImageFont.load_default(size=14)
    pictures = []
    for index, (t, noise) in enumerate(zip(frames.times, frames.noise, strict=True)):
        canvas = Image.new("RGB", (width, height), "white")
        for number, pixels in enumerate(_pictures(frames.states[index])):
            row, column = divmod(number, columns)
            image = Image.fromarray(pixels).resize((tile_width, tile_height), Image.Resampling.NEAREST)
            canvas.paste(image, (pad + column * (tile_width + pad), pad + row * (tile_height + pad)))
        draw = ImageDraw.Draw(canvas)
        top = height - footer + 4
        draw.text((pad, top), "image" if t < 0 else f"t = {t}", fill="black", font=font)
        draw.text((pad + 64, top), "noise", fill="black", font=font)
        start = pad + 110
        draw.rectangle((start, top + 2, width - pad, top + 14), outline=_GREY)
        draw.rectangle((start, top + 2, start + round((width - pad - start) * noise), top + 14), fill=_GREY)
        pictures.append(canvas.convert("P", palette=Image.Palette.ADAPTIVE, colors=64))
    durations = [milliseconds] * (len(pictures) - 1) + [hold_milliseconds]
    with atomic_path(path) as partial:
        pictures[0].save(
            partial, format="GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0, optimize=False
        )
    return Path(path)


@contextlib.contextmanager
def new_figure(path: str | Path | None, width: float, height: float) -> Iterator[Figure]:
    """A figure of that many inches, which becomes a PNG at `path`, if any, when the block ends without an error."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RuntimeError(f'figures need matplotlib ({error}): pip install "fastdiff-ddpm[plot]"') from error
    # Not pyplot: no global state, no display.
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    FigureCanvasAgg(figure)
    yield figure
    if path is None:
        return
    with atomic_path(path) as partial:
        figure.savefig(partial, format="png")


def add_heading(figure: Figure, title: str, note: str) -> None:
    height = figure.get_figheight()
    figure.text(0.02, 1 - 0.24 / height, title, ha="left", va="center", fontsize=12, fontweight="bold")
    figure.text(0.02, 1 - 0.49 / height, note, ha="left", va="center", fontsize=9, color="#444444")


def _grid(
    figure: Figure,
    rows: int,
    columns: int,
    *,
    top: float,
    hspace: float,
    wspace: float,
    left: float = 0.02,
    right: float = 0.98,
) -> npt.NDArray[Any]:
    bottom = 0.3 / figure.get_figheight()
    grid = figure.add_gridspec(
        rows, columns, left=left, right=right, top=top, bottom=bottom, hspace=hspace, wspace=wspace
    )
    axes: npt.NDArray[Any] = grid.subplots(squeeze=False)
    return axes


def _show(ax: Axes, pixels: npt.NDArray[np.uint8], edge: str | None = None) -> None:
    ax.imshow(pixels, interpolation="nearest")
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(edge is not None)
        spine.set_linewidth(2.0)
        spine.set_edgecolor(edge or "black")


def _tidy(ax: Axes) -> None:
    ax.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.spines["top"].set_visible(False)
    ax.spines["right"].set_visible(False)


def plain_log_ticks(axis: Axis, values: npt.ArrayLike) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, in plain numbers, where the values span little."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = float(np.min(values)), float(np.max(values))
    subs = (1.0, 2.0, 5.0) if high / max(low, 1e-12) < 1e3 else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _pictures(images: Tensor) -> npt.NDArray[np.uint8]:
    """uint8 RGB [N, H, W, 3]."""
    if images.ndim != 4 or images.shape[1] not in (1, 3):
        raise ValueError(f"images must be [N, 1 or 3, H, W], got shape {list(images.shape)}")
    pixels = to_uint8(images) if images.is_floating_point() else images
    array: npt.NDArray[np.uint8] = pixels.detach().cpu().permute(0, 2, 3, 1).expand(-1, -1, -1, 3).numpy()
    return array
