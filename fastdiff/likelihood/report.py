"""Reports of scores: JSON for programs, a figure for people."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fastdiff.files.atomic import atomic_file, target_path
from fastdiff.likelihood.coding import RateDistortion
from fastdiff.likelihood.flow import OdeLikelihood
from fastdiff.likelihood.importance import ImportanceBound
from fastdiff.likelihood.paired import Comparison
from fastdiff.likelihood.variational import Bound

Score = Bound | OdeLikelihood | ImportanceBound | RateDistortion | Comparison


def report(score: Score, *, per_image: bool = False, about: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A score as plain values for JSON: its summary, evaluations and, of a bound, every term; NaN is None.

    Args:
        score: What one of this package's functions returned.
        per_image: Also the total of each image.
        about: Further entries, such as the model's path; they win over entries of the same name.
    """
    values: dict[str, Any] = {"method": _METHODS[type(score)], **score.summary()}
    if isinstance(score, Bound):
        values["mean_sampling_error"] = score.mean_sampling_error
        values["terms"] = score.mean_terms.tolist()
    if isinstance(score, RateDistortion):
        values |= {"t": score.t.tolist(), "rates": score.rate.tolist(), "rmses": score.rmse.tolist()}
    if isinstance(score, ImportanceBound):
        counts = [2**k for k in range(score.log_weights.shape[1].bit_length()) if 2**k <= score.log_weights.shape[1]]
        values["by_trajectories"] = {str(k): float(score.with_trajectories(k).mean()) for k in counts}
    if isinstance(score, Bound | OdeLikelihood | ImportanceBound):
        values["evaluations"] = score.evaluations
    if per_image:
        values["totals"] = _totals(score).tolist()
    plain: dict[str, Any] = _plain(values | dict(about or {}))
    return plain


def write_report(
    path: str | Path, score: Score, *, per_image: bool = False, about: Mapping[str, Any] | None = None
) -> Path:
    """Write `report` as a .json file; parent folders are made.

    Raises:
        ValueError: another suffix, or a folder of that name.
    """
    target = target_path(path, ".json")
    text = json.dumps(report(score, per_image=per_image, about=about), indent=2, allow_nan=False) + "\n"
    with atomic_file(target) as file:
        file.write(text.encode())
    return target


def draw_report(path: str | Path, score: Score, *, title: str = "") -> Path:
    """Draw a score as a .png: a bound's terms against t on logarithmic axes, or rate against distortion.

    Raises:
        ValueError: a score that has no picture, or another suffix.
        RuntimeError: matplotlib is missing.
    """
    from fastdiff.files import figures

    target = target_path(path, ".png")
    if isinstance(score, RateDistortion):
        return figures.plot_rate_distortion(
            target,
            score.rate.numpy(),
            score.rmse.numpy(),
            peak=score.peak,
            title=f"{title or 'Progressive coding'}: {score.bound.mean:.3f} bits/dim without loss",
            note=f"= rate {score.total_rate:.3f} (prior and KL terms) + distortion {score.distortion:.3f} (decoder)",
        )
    if not isinstance(score, Bound):
        raise ValueError(f"there is no picture of a {type(score).__name__}: draw a Bound or a RateDistortion")
    heading = f"{score.mean:.3f} ± {score.standard_error:.3f} bits/dim"
    return figures.plot_bound(
        target,
        score.mean_terms.numpy(),
        title=f"{title}: {heading}" if title else heading,
        note=f"= prior {float(score.prior.mean()):.1e} + KL terms {float(score.kl.mean()):.3f} + decoder "
        f"{float(score.decoder.mean()):.3f}; {len(score.total):,} images, {score.evaluations:,} evaluations",
    )


_METHODS: dict[type, str] = {
    Bound: "bound",
    OdeLikelihood: "ode",
    ImportanceBound: "iwae",
    RateDistortion: "rate_distortion",
    Comparison: "compare",
}


def _totals(score: Score) -> Tensor:
    if isinstance(score, Comparison):
        return score.totals
    return score.bound.total if isinstance(score, RateDistortion) else score.total


def _plain(value: Any) -> Any:
    """NaN, which JSON lacks, as None."""
    if isinstance(value, Mapping):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
