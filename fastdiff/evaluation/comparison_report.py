"""A comparison of samplers as a table, a figure and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.evaluation.comparison import Trial
from fastdiff.evaluation.recommend import Choice, recommend
from fastdiff.evaluation.written import write_report
from fastdiff.files.figures import BLUE, ORANGE, add_heading, new_figure, plain_log_ticks

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["FILES", "ComparisonReport"]

FILES = ("comparison.json", "comparison.csv", "comparison.md", "comparison.png", "pictures.png")
_COLOURS = (BLUE, ORANGE, "#2b8a3e", "#8e3b8e", "#8a6d1d", "#444444", "#c0392b", "#1aa3a3")
_COLUMNS = 12


@dataclass(frozen=True, eq=False)
class ComparisonReport:
    """What came of a comparison.

    Attributes:
        trials: Of every sampler and number of evaluations.
        floor: The distance of as many samples of the reference's own kind: nothing that is right comes much below it.
            None where it is not known.
        about: What was compared, as plain values: "model", "reference", "features", "num", "seed".
        budgets: Network evaluations an image for which a sampler is recommended.
    """

    trials: Sequence[Trial]
    floor: Trial | None
    about: dict[str, Any]
    budgets: Sequence[int]

    @property
    def choices(self) -> list[Choice]:
        """The recommended sampler for each budget."""
        return [recommend(self.trials, budget) for budget in self.budgets]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {
            **self.about,
            "floor": None if self.floor is None else self.floor.to_dict(),
            "trials": [one.to_dict() for one in self.trials],
            "recommended": [asdict(choice) for choice in self.choices],
        }

    def to_csv(self) -> str:
        """A row for each trial."""
        text = io.StringIO()
        rows = [one.to_dict() for one in self.trials]
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def to_markdown(self) -> str:
        """The table, and what is recommended."""
        about = self.about
        lines = [
            f"{about['num']:,} samples of {about['model']} by each sampler, ids and noise the same; Fréchet distance "
            f"of the features {about['features']} to {about['reference']}.",
            "",
            "| sampler | evaluations | distance | kernel distance | ms an image |",
            "|---|---:|---:|---:|---:|",
        ]
        for one in [*self.trials, *([] if self.floor is None else [self.floor])]:
            kernel = "" if one.kernel_distance is None else f"{one.kernel_distance:.2g} ± {one.kernel_error:.1g}"
            lines.append(
                f"| {one.name} | {one.evaluations} | {one.distance:.4g} | {kernel} | {1e3 * one.seconds:.3g} |"
            )
        lines += ["", "| evaluations, at most | recommended | evaluations | distance |", "|---:|---|---:|---:|"]
        lines += [f"| {c.budget} | {c.name} | {c.evaluations} | {c.distance:.4g} |" for c in self.choices]
        return "\n".join(lines) + "\n"

    def write(self, folder: str | Path) -> list[Path]:
        """Write `FILES` into a folder.

        Raises:
            RuntimeError: matplotlib is not installed.
        """
        parts = (self.to_dict(), self.to_csv(), self.to_markdown(), self.plot, self.plot_pictures)
        return write_report(folder, dict(zip(FILES, parts, strict=True)))

    def plot(self, path: str | Path) -> Path:
        """The distance against evaluations and against time, a line for each sampler."""
        about = self.about
        with new_figure(path, 10.0, 4.9) as figure:
            add_heading(
                figure,
                f"Samplers on {about['model']}",
                f"{about['num']:,} samples each, the same noise; distance to {about['reference']}; features: "
                f"{about['features']}",
            )
            left, right = figure.subplots(1, 2, sharey=True)
            figure.subplots_adjust(0.075, 0.13, 0.985, 0.83, wspace=0.06)
            self._draw(left, lambda one: one.evaluations)
            self._draw(right, lambda one: 1e3 * one.seconds)
            plain_log_ticks(left.yaxis, [one.distance for one in self.trials])
            plain_log_ticks(right.xaxis, [1e3 * one.seconds for one in self.trials])
            counts = sorted({one.evaluations for one in self.trials})
            left.set_xticks(counts, [str(count) for count in counts])
            left.set_xticks([], minor=True)
            left.set_xlabel("network evaluations an image")
            left.set_ylabel("Fréchet distance")
            right.set_xlabel("milliseconds an image")
            left.legend(frameon=False, fontsize=9)
        return Path(path)

    def _draw(self, ax: Axes, across: Callable[[Trial], float]) -> None:
        """A line for each sampler."""
        names = list(dict.fromkeys(one.name for one in self.trials))
        for name, colour in zip(names, _COLOURS * len(names), strict=False):
            of_name = sorted((one for one in self.trials if one.name == name), key=across)
            style = "--" if name.endswith(" optimal") else "-"
            x, y = [across(one) for one in of_name], [one.distance for one in of_name]
            ax.plot(x, y, style, marker="o", markersize=4, color=colour, label=name)
        if self.floor is not None:
            label = f"{self.floor.name}, {self.floor.evaluations} evaluations"
            ax.axhline(self.floor.distance, color="#9aa3ad", linestyle=":", label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.grid(True, which="major", color="#e6e6e6", linewidth=0.8)
        ax.set_axisbelow(True)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)

    def plot_pictures(self, path: str | Path) -> Path:
        """A row for each trial, a column for each id: the same noise all the way down."""
        rows = [*([] if self.floor is None else [self.floor]), *self.trials]
        columns = min(_COLUMNS, len(rows[0].first))
        # One picture of all, a white line between: an axis for each would take seconds.
        strips = [np.pad(one.first[:columns], ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255) for one in rows]
        wall = np.concatenate([np.concatenate(list(strip), axis=1) for strip in strips], axis=0)
        shown = wall[..., :3] if wall.shape[-1] >= 3 else np.repeat(wall[..., :1], 3, axis=-1)
        tall = len(wall) / len(rows)
        width, height = 0.62 * columns + 2.1, 0.62 * len(rows) * tall * columns / wall.shape[1] + 0.8
        with new_figure(path, width, height) as figure:
            add_heading(figure, "The same noise by every sampler", f"columns are ids of seed {self.about['seed']}")
            ax = figure.add_axes((1.9 / width, 0.05 / height, 1 - 2.0 / width, 1 - 0.75 / height))
            ax.imshow(shown, interpolation="nearest")
            ax.set_xticks([])
            places = [(row + 0.5) * tall - 0.5 for row in range(len(rows))]
            ax.set_yticks(places, [f"{one.name} {one.evaluations}" for one in rows], fontsize=8)
            ax.tick_params(length=0)
            for spine in ax.spines.values():
                spine.set_visible(False)
        return Path(path)
