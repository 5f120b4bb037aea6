"""A model card for the Hugging Face hub, written from what a checkpoint says of itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fastdiff.files.checkpoint import DescribedModel
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown

__all__ = ["check_license", "model_card", "read_figures"]

# The names of the reports that `fastdiff evaluate` and `fastdiff compare` write.
_REPORTS = ("evaluation.json", "comparison.json")
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
# Of a training's settings, those that a reader of the card asks for.
_TOLD = ("steps", "batch_size", "learning_rate", "loss", "weighting", "ema_decay", "label_dropout", "precision", "seed")
_METRICS = {"fid": "Fréchet distance", "kid": "kernel distance", "is": "inception score"}
_TASK = "unconditional-image-generation"


def check_license(name: str | None) -> str | None:
    """A licence's identifier as the hub spells it, such as "mit", "cc-by-4.0" or "other".

    Raises:
        ValueError: it is no such name.
    """
    if name is not None and not _LICENSE.fullmatch(name):
        raise ValueError(
            f'{spelt("license")} must be an identifier of the hub, such as "mit", "apache-2.0" or "other", '
            f"got {shown(name)}"
        )
    return name


def read_figures(places: Iterable[str | Path]) -> dict[str, dict[str, Any]]:
    """What `fastdiff evaluate` and `fastdiff compare` wrote, by the name of the report.

    Args:
        places: Their folders, or the reports themselves, evaluation.json or comparison.json.

    Raises:
        ValueError: a place holds neither, or no JSON.
    """
    found: dict[str, dict[str, Any]] = {}
    for place in map(Path, places):
        files = [place] if place.name in _REPORTS else [place / name for name in _REPORTS]
        files = [path for path in files if path.is_file()]
        if not files:
            raise ValueError(
                f"{spelt('figures')}: {place} has no {' and no '.join(_REPORTS)}; evaluate and compare write them"
            )
        for path in files:
            try:
                read = json.loads(path.read_text(encoding="utf-8"))
            except (ValueError, OSError) as error:
                raise ValueError(f"{spelt('figures')}: {path} cannot be read ({error})") from error
            if not isinstance(read, dict):
                raise ValueError(f"{spelt('figures')}: {path} is no report of fastdiff")
            found[path.name] = read
    return found


def model_card(
    model: DescribedModel,
    hub_id: str,
    *,
    image_shape: tuple[int, int, int],
    license: str | None = None,
    figures: Mapping[str, Mapping[str, Any]] | None = None,
    pictures: str | None = None,
) -> str:
    """README.md of a model on the hub.

    Args:
        model: A network with its process, its scaling and its metadata, as `Pipeline` is.
        hub_id: owner/name.
        image_shape: [C, H, W] of its images.
        license: See `check_license`; the card says so where there is none.
        figures: See `read_figures`.
        pictures: What the picture samples.png in the same place shows, a sentence; None for no picture.

    Returns:
        Markdown, with the hub's fields in front.
    """
    data, training = model.metadata.get("data") or {}, model.metadata.get("training") or {}
    evaluation, comparison = ((figures or {}).get(name, {}) for name in _REPORTS)
    name, size = hub_id.rpartition("/")[2], sum(parameter.numel() for parameter in model.unet.parameters())
    shape = "x".join(map(str, image_shape))
    classes = getattr(model.unet.config, "num_classes", None)
    sampler, steps = _choice(comparison, model.diffusion.num_timesteps)
    labels = f", labels=[0] * 16{', guidance=2.0' if training.get('label_dropout') else ''}" if classes else ""
    parts = [
        _fields(name, license, evaluation),
        f"# {name}",
        f"A denoising diffusion model of {shape} images (channels x height x width), {size:,} parameters, by fastdiff.",
    ]
    if pictures is not None:
        parts.append(f"![samples](samples.png)\n\n{pictures}")
    parts += [
        "## Use",
        "The package is `fastdiff-ddpm`; plain `fastdiff` on the package index compares texts.",
        '```\npip install "fastdiff-ddpm[hub]"\n```',
        f"""```python
import fastdiff as fd

pipe = fd.Pipeline.from_pretrained("hf://{hub_id}")
images = pipe.sample(16, sampler="{sampler}", steps={steps}, seed=0{labels})
```""",
        f"They are [16, {', '.join(map(str, image_shape))}], with values in [-1, 1]. At the command line:",
        f"```\nfastdiff sample hf://{hub_id} --num 16 --sampler {sampler} --steps {steps} --out samples.png"
        + (" --label 0" if classes else "")
        + "\n```",
        "## Model",
        _table(
            {
                "network": type(model.unet).__name__,
                "parameters": f"{size:,}",
                "classes": classes,
                "process": str(model.diffusion.schedule),
                "predicts": model.diffusion.prediction,
                "variance": model.diffusion.variance,
                "weights": "an average of the training" if model.metadata.get("weights") == "ema" else None,
                "values of a pixel": model.scaling.levels,
            }
        ),
        "## Data",
        _table({"source": _public(data.get("source")), "images": data.get("num_images"), "sha256": data.get("sha256")})
        or "The checkpoint does not say what the model was trained on.",
        "## Training",
        _table(
            {"steps taken": model.metadata.get("step") or None}
            | {key: training[key] for key in _TOLD if training.get(key)}
        )
        or "The checkpoint does not say how the model was trained.",
        "## Samplers",
        _samplers(comparison, sampler, steps, model.diffusion.num_timesteps),
    ]
    if evaluation:
        parts += ["## Figures", _figures(evaluation)]
    parts += [
        "## Licence",
        "The owner has said nothing of a licence: ask before you use it." if license is None else f"`{license}`",
        "## Files",
        "`model.safetensors` and `config.json`: numbers and settings. No file of the model is code or a pickle.",
    ]
    return "\n\n".join(parts) + "\n"


def _fields(name: str, license: str | None, evaluation: Mapping[str, Any]) -> str:
    """The hub's fields, as YAML between two rules."""
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type="images",
            dataset_name=_one_line((evaluation.get("reference") or {}).get("source", "a reference")),
            metric_type=metric,
            metric_value=round(float(value), 6),
            metric_name=_METRICS[metric],
        )
        for metric, value in _values(evaluation).items()
        if metric in _METRICS
    ]
    fields = ModelCardData(
        license=license,
        library_name="fastdiff",
        pipeline_tag=_TASK,
        tags=["fastdiff", "diffusion", "ddpm", "image-generation"],
        model_name=name if results else None,
        eval_results=results or None,
    )
    return f"---\n{fields.to_yaml()}\n---"


def _values(evaluation: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of the first set of an evaluation, those that are numbers."""
    sets = evaluation.get("sets") or [{}]
    values = sets[0].get("values") or {}
    return {str(key): float(value) for key, value in values.items() if isinstance(value, int | float)}


def _figures(evaluation: Mapping[str, Any]) -> str:
    reference, features = evaluation.get("reference") or {}, evaluation.get("features") or {}
    num = (evaluation.get("sets") or [{}])[0].get("num")
    return (
        f"{num:,} samples against {_one_line(reference.get('source'))}; features: {_one_line(features.get('name'))}\n\n"
        if isinstance(num, int)
        else ""
    ) + _table({_METRICS.get(key, key): f"{value:.4g}" for key, value in _values(evaluation).items()})


def _choice(comparison: Mapping[str, Any], num_timesteps: int) -> tuple[str, int]:
    """The sampler to begin with: of a comparison that was made, the best of all that it recommends."""
    recommended = [one for one in comparison.get("recommended") or [] if str(one.get("name", "")).isidentifier()]
    if recommended:
        best = min(recommended, key=lambda one: one["distance"])
        return str(best["name"]), int(best["evaluations"])
    return "unipc", min(20, num_timesteps)


def _samplers(comparison: Mapping[str, Any], sampler: str, steps: int, num_timesteps: int) -> str:
    recommended = comparison.get("recommended") or []
    if not recommended:
        return (
            f"`{sampler}` with {steps} evaluations is a quick start, `ddim` with {min(50, num_timesteps)} a careful "
            f"one, and `ddpm` with all {num_timesteps} what the model was trained as. Nothing was measured on this "
            "model: `fastdiff compare` does."
        )
    lines = ["| evaluations, at most | recommended | evaluations | distance |", "|---:|---|---:|---:|"]
    lines += [
        f"| {one['budget']} | {_one_line(one['name'])} | {one['evaluations']} | {one['distance']:.4g} |"
        for one in recommended
    ]
    return "Measured on this model by `fastdiff compare`:\n\n" + "\n".join(lines)


def _table(rows: Mapping[str, Any]) -> str:
    """A table of what is known; empty where nothing is."""
    known = {key: value for key, value in rows.items() if value is not None}
    lines = [
        f"| {key} | {value:,} |" if type(value) is int else f"| {key} | {_one_line(value)} |"
        for key, value in known.items()
    ]
    return "\n".join(["| | |", "|---|---|", *lines]) if lines else ""


def _public(source: object) -> object:
    """Where data came from; of a folder on somebody's disk its name alone."""
    return Path(source).name if isinstance(source, str) and source.startswith(("/", "~", ".")) else source


def _one_line(value: object) -> str:
    """A text in a cell of a table."""
    return " ".join(str(value).split()).replace("|", "\\|")
