"""`report.html`: what a training looked like, in one file that needs nothing else, no network either."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastdiff.files.atomic import write_text
from fastdiff.files.checkpoint import versions
from fastdiff.files.progress import duration
from fastdiff.training.log import read_metrics
from fastdiff.training.monitor import FEATURES, SAMPLER, SAMPLING_STEPS

__all__ = ["REPORT_FILE", "write_report"]

REPORT_FILE = "report.html"

# Pictures that a report holds, and points of a curve, at most.
_MOST_PICTURES = 12
_MOST_POINTS = 400
# Characters of a setting.
_LONGEST = 300
# Of a chart, in SVG's units; it is as wide as there is room.
_WIDTH, _HEIGHT = 460, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 12, 10, 40

Points = Sequence[tuple[float, float]]

_STYLE = """
:root { --ink: #1c2530; --dim: #5b6875; --line: #d9dee4; --card: #fff; --page: #f4f6f8; --a: #1f5fa8; --b: #d1660a;
  --c: #3b8f5a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --dim: #9aa7b4; --line: #36414c; --card: #1b222a;
  --page: #12171d; --a: #6aa9f0; --b: #f0944a; --c: #6cc48d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 20px 16px 48px; }
h1 { font-size: 24px; margin: 8px 0 2px; overflow-wrap: anywhere; }
h2 { font-size: 17px; margin: 0 0 4px; }
p { margin: 4px 0 10px; color: var(--dim); }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 14px; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 14px 16px;
  min-width: 0; }
section.wide { grid-column: 1 / -1; }
dl.facts { display: flex; flex-wrap: wrap; gap: 6px 28px; margin: 12px 0 16px; }
dl.facts div { min-width: 0; }
dl.facts dt { color: var(--dim); font-size: 13px; }
dl.facts dd { margin: 0; font-size: 18px; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; }
svg text { fill: var(--dim); font: 12px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; }
svg path { fill: none; stroke-width: 2; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; color: var(--dim); font-size: 13px; margin-top: 4px; }
.legend i { display: inline-block; width: 18px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: 6px; }
.pictures { display: flex; flex-wrap: wrap; gap: 14px; align-items: flex-start; }
figure { margin: 0; max-width: 100%; }
figure img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); background: #fff; }
figure.small { flex: 1 1 140px; max-width: 250px; }
figcaption { color: var(--dim); font-size: 13px; }
details { margin-top: 6px; }
summary { cursor: pointer; }
table { border-collapse: collapse; width: 100%; table-layout: fixed; font-size: 14px; }
td { border-top: 1px solid var(--line); padding: 3px 8px 3px 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { color: var(--dim); width: 42%; }
"""


def write_report(folder: str | Path, settings: Mapping[str, Any]) -> Path:
    """Write the report of a training, from its log and its pictures.

    Args:
        folder: Of the training run; the file is `report.html` in it.
        settings: What is trained, in named sections of plain values.

    Returns:
        The file.

    Raises:
        RuntimeError: it could not be written.
    """
    folder = Path(folder)
    entries = read_metrics(folder)
    path = folder / REPORT_FILE
    try:
        return write_text(path, _page(folder, entries, settings))
    except OSError as error:
        raise RuntimeError(f"{path} could not be written: {error.strerror or error}; checkpoints are intact") from error


def _page(folder: Path, entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    name = _text(folder.resolve().name or "a training")
    cards = [
        _pictures(folder, entries, settings.get("training", {})),
        _loss(entries),
        _loss_by_timestep(entries, settings),
        _held_out(entries),
        _frechet(entries),
        _settings(settings),
    ]
    body = "\n".join(card for card in cards if card)
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{name}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>{_STYLE}</style>\n</head>\n<body>\n<main>\n<h1>{name}</h1>\n'
        f"{_facts(entries, settings)}\n"
        f'<div class="cards">\n{body}\n</div>\n</main>\n</body>\n</html>\n'
    )


def _facts(entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    training, data = settings.get("training", {}), settings.get("data", {})
    facts: list[tuple[str, str]] = []
    if entries:
        facts.append(("steps", f"{entries[-1]['step']:,} of {training.get('steps', 0):,}"))
    if data.get("num_images"):
        shape = " x ".join(map(str, data.get("shape", ())))
        facts.append(("images", f"{data['num_images']:,} of {shape} from {data.get('source', '')}"))
    for key, called in (
        ("loss", "loss"),
        ("held_out_loss", "held-out loss"),
        ("held_out_bits_per_dim", "held-out bits/dim"),
        ("frechet_distance", "Fréchet distance"),
    ):
        if points := _points(entries, key):
            facts.append((called, f"{points[-1][1]:.4g}"))
    if seconds := _seconds(entries, training.get("batch_size", 0)):
        facts.append(("training took", duration(seconds)))
        facts.append(("images/s", f"{entries[-1]['step'] * training['batch_size'] / seconds:,.0f}"))
    if looked := sum(entry.get("seconds_looked") or 0.0 for entry in entries):
        facts.append(("looking took", duration(looked)))
    listed = "".join(f"<div><dt>{_text(key)}</dt><dd>{_text(value)}</dd></div>" for key, value in facts)
    return f'<dl class="facts">{listed}</dl>'


def _seconds(entries: Sequence[Mapping[str, Any]], batch_size: int) -> float:
    """What training took, from its speed; that of a run that was stopped and went on is all of it."""
    seconds, before = 0.0, 0
    for entry in entries:
        if entry.get("images_per_second"):
            seconds += (entry["step"] - before) * batch_size / entry["images_per_second"]
            before = entry["step"]
    return seconds


def _pictures(folder: Path, entries: Sequence[Mapping[str, Any]], training: Mapping[str, Any]) -> str:
    found = [(entry["step"], folder / entry["picture"]) for entry in entries if entry.get("picture")]
    found = [(step, path) for step, path in found if path.is_file() and path.resolve().is_relative_to(folder.resolve())]
    if not found:
        return ""
    chosen = sorted({round(i) for i in np.linspace(0, len(found) - 1, min(len(found), _MOST_PICTURES))})
    figures = [_figure(*found[i], small=True) for i in chosen[:-1]]
    guided = training.get("picture_guidance")
    how = f"{SAMPLER}, {SAMPLING_STEPS} steps at most" + ("" if guided is None else f", guidance {guided:g}")
    note = f"The same samples at each step, of the averaged weights ({how}); the latest first."
    if len(chosen) < len(found):
        note += f" {len(chosen)} of {len(found)} pictures."
    inside = _figure(*found[-1], small=False) + "".join(reversed(figures))
    return _card("Samples", note, f'<div class="pictures">{inside}</div>', wide=True)


def _figure(step: int, path: Path, *, small: bool) -> str:
    source = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure{" class=small" if small else ""}><img alt="samples at step {step}" '
        f'src="data:image/png;base64,{source}"><figcaption>step {step:,}</figcaption></figure>'
    )


def _loss(entries: Sequence[Mapping[str, Any]]) -> str:
    points = _points(entries, "loss")
    if not points:
        return ""
    curves = [_Curve("training", "a", _thinned(points))]
    held_out = _points(entries, "held_out_loss")
    if held_out:
        curves.append(_Curve("held out, averaged weights", "b", held_out, dots=True))
    note = "Training: mean since the entry before, of the weights that are trained."
    return _card("Loss", note, _chart(curves, "step", log=all(y > 0 for curve in curves for _, y in curve.points)))


def _loss_by_timestep(entries: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> str:
    rows = [(entry["step"], entry["loss_by_timestep"]) for entry in entries if entry.get("loss_by_timestep")]
    if not rows:
        return ""
    # The loss of a few steps is rough: the first tenth, a tenth in the middle, the last fifth.
    num, curves = len(rows), list[_Curve]()
    stretches = [rows[: max(1, num // 10)], rows[num * 9 // 20 : num * 11 // 20], rows[-max(1, num // 5) :]]
    for part, color in zip(stretches, "cba", strict=True):
        means = [_mean([row[i] for _, row in part]) for i in range(len(rows[0][1]))]
        points = [((i + 0.5) / len(means), value) for i, value in enumerate(means) if value is not None]
        if points:
            first, last = f"{part[0][0]:,}", f"{part[-1][0]:,}"
            curves.append(_Curve(f"step {last}" if first == last else f"steps {first} to {last}", color, points, True))
    note = "Means in tenths of the timesteps, from the training losses themselves; noise is at the right."
    positive = all(y > 0 for curve in curves for _, y in curve.points)
    return _card("Loss by timestep", note, _chart(curves, "t / T", log=positive, low=0.0, high=1.0))


def _held_out(entries: Sequence[Mapping[str, Any]]) -> str:
    points = _points(entries, "held_out_bits_per_dim")
    if not points:
        return ""
    error = _points(entries, "held_out_bits_per_dim_error")
    spread = f" The last is {points[-1][1]:.3f} ± {error[-1][1]:.3f}, one standard error over images." if error else ""
    note = f"An unbiased estimate of the variational bound, with the same images and draws at each step.{spread}"
    return _card("Held-out bits/dim", note, _chart([_Curve("held out", "b", points, dots=True)], "step"))


def _frechet(entries: Sequence[Mapping[str, Any]]) -> str:
    points = _points(entries, "frechet_distance")
    if not points:
        return ""
    curves = [_Curve("samples", "a", points, dots=True)]
    floor = _points(entries, "frechet_distance_held_out")
    if floor:
        curves.append(_Curve("as many held-out images", "c", floor))
    note = (
        f"Between samples and training images, of {FEATURES}. Small sets have larger distances: compare those of one "
        "number of samples."
    )
    return _card("Fréchet distance", note, _chart(curves, "step", log=all(y > 0 for c in curves for _, y in c.points)))


def _settings(settings: Mapping[str, Any]) -> str:
    sections = {**settings, "versions": versions()}
    tables = []
    for name, values in sections.items():
        rows = "".join(f"<tr><td>{_text(key)}</td><td>{_text(value)}</td></tr>" for key, value in values.items())
        opened = " open" if name == "training" else ""
        tables.append(f"<details{opened}><summary>{_text(name)}</summary><table>{rows}</table></details>")
    return _card("Settings", "", "".join(tables), wide=True)


def _card(title: str, note: str, inside: str, *, wide: bool = False) -> str:
    said = f"<p>{_text(note)}</p>" if note else ""
    return f"<section{' class=wide' if wide else ''}><h2>{_text(title)}</h2>{said}{inside}</section>"


@dataclass(frozen=True)
class _Curve:
    """A curve of a chart: its name, which of the colours it has, its points, and whether they are marked."""

    label: str
    color: str
    points: Points
    dots: bool = False


def _chart(
    curves: Sequence[_Curve], axis: str, *, log: bool = False, low: float | None = None, high: float | None = None
) -> str:
    """Curves as SVG, with a legend below."""
    xs = [x for curve in curves for x, _ in curve.points]
    ys = [y for curve in curves for _, y in curve.points]
    left, right = min(xs) if low is None else low, max(xs) if high is None else high
    ticks = _log_ticks(min(ys), max(ys)) if log else _ticks(min(ys), max(ys))
    ends = (min([*ticks, *ys]), max([*ticks, *ys]))

    def across(x: float) -> float:
        return _LEFT + (_WIDTH - _LEFT - _RIGHT) * ((x - left) / (right - left) if right > left else 0.5)

    def up(y: float) -> float:
        bottom, top, value = (math.log(v) if log else v for v in (*ends, y))
        share = (value - bottom) / (top - bottom) if top > bottom else 0.5
        return _HEIGHT - _BOTTOM - (_HEIGHT - _TOP - _BOTTOM) * share

    parts = []
    for tick in ticks:
        y = up(tick)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in _ticks(left, right, inside=True):
        x = across(tick)
        anchor = "end" if x > _WIDTH - 40 else "middle"
        parts.append(f'<text x="{x:.1f}" y="{_HEIGHT - _BOTTOM + 16}" text-anchor="{anchor}">{tick:,g}</text>')
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2}" y="{_HEIGHT - 4}" text-anchor="middle">{_text(axis)}</text>'
    )
    for curve in curves:
        places = [(across(x), up(y)) for x, y in curve.points]
        line = "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
        parts.append(f'<path d="M{line}" stroke="var(--{curve.color})"/>')
        if curve.dots or len(places) == 1:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="var(--{curve.color})"/>' for x, y in places]
    legend = "".join(
        f'<span><i style="border-color: var(--{curve.color})"></i>{_text(curve.label)}</span>' for curve in curves
    )
    return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg><div class="legend">{legend}</div>'


def _points(entries: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(step, value) of the entries that have one."""
    return [(entry["step"], float(entry[key])) for entry in entries if isinstance(entry.get(key), int | float)]


def _thinned(points: Points) -> Points:
    """Means over neighbours where there are more points than can be seen."""
    every = -(-len(points) // _MOST_POINTS)
    groups = [points[i : i + every] for i in range(0, len(points), every)]
    return [(group[-1][0], sum(y for _, y in group) / len(group)) for group in groups]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """About five round numbers over a range, the ends of which they enclose unless they must lie inside."""
    if high <= low:
        return [low]
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 5)
    first, last = (math.ceil, math.floor) if inside else (math.floor, math.ceil)
    return [float(f"{i * step:.12g}") for i in range(first(low / step), last(high / step) + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten around a range; the powers alone where it is wide."""
    factors = (1, 2, 5) if high / low < 1e3 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor * 10.0**power:.12g}") for power in powers for factor in factors]
    below, above = [t for t in ticks if t <= low], [t for t in ticks if t >= high]
    return [t for t in ticks if below[-1] <= t <= above[0]]


def _text(value: object) -> str:
    """Any value as text of the page."""
    if isinstance(value, list | tuple) and len(value) > 16:
        value = f"{len(value)} values"
    elif isinstance(value, Mapping):
        value = ", ".join(
            f"{key}: {f'{len(part)} values' if isinstance(part, list) and len(part) > 16 else part}"
            for key, part in value.items()
        )
    text = str(value)
    return html.escape(text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...")
