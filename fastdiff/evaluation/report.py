"""An evaluation as JSON, CSV and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastdiff.evaluation.evaluate import EvaluationSettings, Measured, SetScores
from fastdiff.evaluation.feature_values import Features
from fastdiff.evaluation.moments import Gaussian
from fastdiff.evaluation.seeds import Spread, over_seeds
from fastdiff.evaluation.written import write_report
from fastdiff.files.figures import BLUE, ORANGE, add_heading, new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["CALLED", "FILES", "EvaluationReport"]

CALLED = {
    "fid": "Fréchet distance",
    "kid": "kernel distance",
    "precision": "precision",
    "recall": "recall",
    "density": "density",
    "coverage": "coverage",
    "is": "inception score",
}
FILES = ("evaluation.json", "evaluation.csv", "evaluation.png")


@dataclass(frozen=True, eq=False)
class EvaluationReport:
    """What was measured, and of what.

    Attributes:
        scores: Of each set.
        reference: What they were held against.
        reference_source: Where that is from.
        reference_sha256: Of its pixels, or of the file of statistics.
        features: What images were compared by.
        settings: What was measured.
    """

    scores: Sequence[SetScores]
    reference: Measured | Gaussian
    reference_source: str
    reference_sha256: str
    features: Features
    settings: EvaluationSettings

    @property
    def spreads(self) -> dict[str, Spread]:
        """Over the sets; empty for one."""
        return over_seeds([one.values for one in self.scores])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        settings = self.settings
        kept = {"compared": settings.compared} if settings.keeps_features else {}
        neighbours = {"neighbours": settings.neighbours} if "prdc" in settings.metrics else {}
        return {
            "reference": {
                "source": self.reference_source,
                "sha256": self.reference_sha256,
                "num": self.reference.count if isinstance(self.reference, Gaussian) else self.reference.num,
            },
            "features": {"name": self.features.name, **self.features.about},
            "settings": {"metrics": list(settings.metrics), "seed": settings.seed, **kept, **neighbours},
            "sets": [{**one.samples.to_dict(), "values": one.values, "errors": one.errors} for one in self.scores],
            "spread": {name: spread.to_dict() for name, spread in self.spreads.items()},
        }

    def to_csv(self) -> str:
        """A row for each number of each set."""
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["samples", "seed", "num", "metric", "value", "error", "features", "reference", "sha256"])
        for one in self.scores:
            about = one.samples
            for name, value in one.values.items():
                row = [about.source, about.about.get("seed", ""), about.num, name, value, one.errors.get(name, "")]
                writer.writerow([*row, self.features.name, self.reference_source, self.reference_sha256])
        return text.getvalue()

    def write(self, folder: str | Path) -> list[Path]:
        """Write `FILES` into a folder.

        Raises:
            RuntimeError: matplotlib is not installed.
        """
        parts = (self.to_dict(), self.to_csv(), self.plot)
        return write_report(folder, dict(zip(FILES, parts, strict=True)))

    def plot(self, path: str | Path) -> Path:
        """Every number of every set as a dot, and the first images of the first set and of the reference."""
        names = list(self.scores[0].values)
        strips = {"samples": self.scores[0].samples.first}
        if isinstance(self.reference, Measured):
            strips["reference"] = self.reference.first
        width, height = max(1.55 * len(names) + 0.8, 8.0), 3.3 + 1.6 * len(strips)
        nums = ", ".join(f"{one.samples.num:,}" for one in self.scores)
        note = self.features.about.get("note", f"resize: {self.features.about['resize']}")
        with new_figure(path, width, height) as figure:
            add_heading(
                figure, f"{nums} samples against {self.reference_source}", f"features: {self.features.name}; {note}"
            )
            grid = figure.add_gridspec(
                1, len(names), left=0.75 / width, right=1 - 0.25 / width, wspace=0.75,
                top=1 - 1.15 / height, bottom=(1.6 * len(strips) + 0.55) / height,
            )  # fmt: skip
            for place, name in enumerate(names):
                self._draw(figure.add_subplot(grid[0, place]), name)
            for row, (label, images) in enumerate(reversed(strips.items())):
                ax = figure.add_axes((0.75 / width, (0.1 + 1.6 * row) / height, 1 - 1.0 / width, 1.45 / height))
                ax.imshow(_strip(images), interpolation="nearest", aspect="equal")
                ax.set_axis_off()
                figure.text(0.15 / width, (0.8 + 1.6 * row) / height, label, fontsize=8, rotation=90, va="center")
        return Path(path)

    def _draw(self, ax: Axes, name: str) -> None:
        """One number of every set."""
        found = np.array([one.values[name] for one in self.scores])
        bars = np.array([one.errors.get(name, 0.0) for one in self.scores])
        ax.errorbar(range(len(found)), found, yerr=bars if bars.any() else None, fmt="o", color=BLUE, ecolor=ORANGE)
        ax.set_title(f"{CALLED[name]}\n{found.min():.4g}" + (" (least)" if len(found) > 1 else ""), fontsize=9)
        seeds = [one.samples.about.get("seed") for one in self.scores]
        known = None not in seeds
        ax.set_xticks(range(len(found)), [str(seed) for seed in (seeds if known else range(1, len(found) + 1))])
        ax.set_xlabel("seed" if known else "set", fontsize=8)
        ax.set_xlim(-0.6, len(found) - 0.4)
        if name in ("precision", "recall", "coverage"):
            ax.set_ylim(0, 1.03)
        elif found.min() >= 0 and not bars.any():
            ax.set_ylim(0, max(1.15 * found.max(), 1e-12))
        ax.tick_params(labelsize=8)
        ax.ticklabel_format(axis="y", style="sci", scilimits=(-2, 4))
        ax.grid(True, axis="y", color="#e6e6e6", linewidth=0.8)
        for side in ("top", "right"):
            ax.spines[side].set_visible(False)


def _strip(images: np.ndarray[Any, np.dtype[np.uint8]]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Images side by side, RGB, a white line between them."""
    shown = images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, axis=-1)
    framed = np.pad(shown, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)
    # Two rows, so that small images are large enough to see.
    half = -(-len(framed) // 2)
    rows = [np.concatenate(list(part), axis=1) for part in (framed[:half], framed[half:]) if len(part)]
    wide = max(row.shape[1] for row in rows)
    rows = [np.pad(row, ((0, 0), (0, wide - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(rows, axis=0)
