"""The demonstration: train on handwritten digits, sample, score, and draw what came out."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor

from fastdiff import likelihood, samplers
from fastdiff.cli import environment
from fastdiff.cli.demo.digits_report import Outcome, draw, report
from fastdiff.cli.progress import Bars
from fastdiff.evaluation import (
    EvaluationReport,
    EvaluationSettings,
    ImageSet,
    Measured,
    evaluate,
    metrics,
    open_features,
)
from fastdiff.files.atomic import delete_folder, write_text
from fastdiff.files.data import DataScaling, ImageData, digits
from fastdiff.files.images import to_uint8, write_npz
from fastdiff.generation.generate import Request, generate
from fastdiff.generation.reading import stored_images
from fastdiff.generation.shards import Shard
from fastdiff.nets.recipes import RECIPES, build_diffusion
from fastdiff.nets.unet import UNet, UNetConfig
from fastdiff.pipeline import Pipeline
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.training.config import TrainConfig
from fastdiff.training.log import METRICS_FILE, PICTURES_FOLDER, read_metrics
from fastdiff.training.report import REPORT_FILE
from fastdiff.training.trackers import LOGS_FOLDER
from fastdiff.training.trainer import Trainer

__all__ = ["DemoConfig", "delete_run", "digits_diffusion", "digits_training", "digits_unet", "run_demo"]

FEATURES = "the 8x8 pixels in [-1, 1]; squared distance"
SAMPLING_BATCH = 200
GENERATED = "generated"
"""The folder of the samples, as `fastdiff generate` writes them."""
# Samples in a picture of the training, and images that are evaluated in it, at most.
PICTURED, EVALUATED = 64, 256


@dataclass(frozen=True)
class DemoConfig:
    """Settings of the demonstration.

    Attributes:
        steps: Training steps.
        num_samples: Images to sample for the numbers.
        num_scored: Held-out images to score in bits/dim; None for all.
        classifiers: Members of each classifier.
        looks: How often the training is looked at.
        seed: Of the network's first weights, the training, the samples and the bound.
    """

    steps: int = RECIPES["digits"]["train"]["steps"]
    num_samples: int = 1000
    num_scored: int | None = None
    classifiers: int = 3
    looks: int = 5
    seed: int = 0

    @classmethod
    def quick(cls, seed: int = 0) -> DemoConfig:
        """The same in seconds, with a network that has barely begun to learn."""
        return cls(steps=60, num_samples=100, num_scored=20, classifiers=1, looks=1, seed=seed)


def digits_diffusion() -> Diffusion:
    """What the network is trained on."""
    return build_diffusion(RECIPES["digits"]["diffusion"])[0]


def digits_unet() -> UNetConfig:
    """The network: 0.7 million parameters."""
    outputs = digits_diffusion().model_channels(1)
    return UNetConfig.preset("digits", out_channels=outputs, **RECIPES["digits"]["unet"])


def digits_training(steps: int, seed: int = 0) -> TrainConfig:
    """How it is trained."""
    loss = "hybrid" if digits_diffusion().learned_variance else "simple"
    return TrainConfig.from_dict({**RECIPES["digits"]["train"], "steps": steps, "seed": seed, "loss": loss})


def run_demo(
    folder: str | Path,
    config: DemoConfig | None = None,
    *,
    fresh: bool = False,
    device: torch.device | str = "cpu",
    console: Console | None = None,
) -> dict[str, Any]:
    """Train, sample, score and draw; writes everything into one folder.

    A folder that holds a training run of the same settings is used as it is: an interrupted one goes on, a finished
    one is only sampled and scored again.

    Args:
        folder: Where to, also the run folder of the training.
        config: Settings.
        fresh: Delete the training that the folder holds, and begin again.
        device: Where to run the network.
        console: Where to print; the standard output when None.

    Returns:
        What is in `metrics.json`.

    Raises:
        ValueError: the folder holds a training run of other settings.
        RuntimeError: scikit-learn or matplotlib are missing, or the folder cannot be written.
    """
    config = config or DemoConfig()
    out, started = Path(folder), time.monotonic()
    console = console or Console()
    train, held_out = digits("train"), digits("test")
    scored = held_out if config.num_scored is None else held_out.take(range(config.num_scored))
    if fresh:
        delete_run(out)
    console.print(
        f"Training on {len(train):,} handwritten digits of 8x8 pixels; {len(held_out)} others are held out to score."
    )
    with Bars(console) as bars:
        training = _train(out, train, held_out, config, device, bars, console)
        model = Pipeline.from_pretrained(out, device=device)
        table = samplers.ddpm(model.diffusion)
        samples, sampling = _generate(model, table, out, train, config, bars)
        bound, scoring = _score(model.unet, model.diffusion, scored, config, bars)
        done = bars.working("classifying")
        judges = _judges(train, config)
        shown = train.to_model(samples)
        judged = {name: _judge(judge, shown, train, held_out) for name, judge in judges.items()}
        done()
        done = bars.working("drawing")
        names = _label(judges["classifier"], shown)
        draw(
            out,
            Outcome(model.unet, table, config.seed, train, shown, names, bound, _history(out), training),
        )
        write_npz(out / "samples.npz", shown)
        evaluated = _evaluate(out, shown, train, held_out)
        done()
    result = {
        "likelihood": {**bound.summary(), **_yardsticks(train, scored), **scoring},
        **evaluated,
        **judged,
        "copies": _copies(shown, train, held_out),
        "training": training,
        "sampling": sampling,
        "peak_memory_bytes": metrics.peak_memory_bytes(),
        "total_seconds": time.monotonic() - started,
        "data": {"source": "digits", "train_images": len(train), "held_out_images": len(held_out), "levels": 17},
        "network": model.unet.config.to_dict(),
        "demo": asdict(config),
        "seed": config.seed,
        "device": str(device),
        "versions": environment.versions(),
        "machine": environment.machine(),
    }
    _write_json(out / "metrics.json", result)
    report(console, out, result)
    return result


def _train(
    out: Path,
    data: ImageData,
    held_out: ImageData,
    config: DemoConfig,
    device: torch.device | str,
    bars: Bars,
    console: Console,
) -> dict[str, Any]:
    every = max(1, config.steps // config.looks)
    settings = replace(
        digits_training(config.steps, config.seed),
        picture_every=every,
        num_pictures=min(PICTURED, config.num_samples),
        evaluate_every=every,
        num_evaluated=min(EVALUATED, config.num_scored or EVALUATED),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        unet = UNet(digits_unet()).to(device)
    trainer = Trainer(unet, digits_diffusion(), data, settings, out, held_out=held_out)
    resumed = trainer.step
    if resumed >= settings.steps:
        console.print(f"{out} holds a finished training run, which is used; --fresh trains again.")
    elif resumed:
        console.print(f"Going on from step {resumed:,}, where an earlier run in {out} was stopped.")
    if resumed < settings.steps:
        progress, on_step = bars.training("training", settings, resumed)
        result = trainer.run(progress=progress, on_step=on_step)
        for note in result.notes:
            console.print(note)
    history = _history(out)
    # From the log, so that the time of a run that was stopped and continued is all of it.
    images = [settings.batch_size * n for n in np.diff([0, *(entry["step"] for entry in history)])]
    seconds = float(sum(n / entry["images_per_second"] for n, entry in zip(images, history, strict=True)))
    return {
        "seconds": seconds,
        "images_per_second": sum(images) / seconds,
        "steps": trainer.step,
        "resumed_from": resumed,
        "loss": float(np.mean([entry["loss"] for entry in history[-10:]])),
        "parameters": sum(parameter.numel() for parameter in unet.parameters()),
        "settings": settings.to_dict(),
        "diffusion": RECIPES["digits"]["diffusion"],
    }


def _history(out: Path) -> list[dict[str, float]]:
    return [entry for entry in read_metrics(out) if "loss" in entry]


def _generate(
    pipe: Pipeline, table: CoefficientTable, out: Path, data: ImageData, config: DemoConfig, bars: Bars
) -> tuple[Tensor, dict[str, Any]]:
    """Samples 0, 1, 2, ... of the seed, as `fastdiff generate` makes them, rounded to the data's values."""
    update, started = bars.counting("sampling", config.num_samples), time.monotonic()
    folder = out / GENERATED
    if folder.is_dir():
        # Made anew, so that the time is that of all of them.
        delete_folder(folder)
    request = Request(config.num_samples, sampler=table, seed=config.seed, part_size=SAMPLING_BATCH)
    job = generate(
        pipe, folder, request, shard=Shard(), batch_size=SAMPLING_BATCH, progress=lambda done, total: update(done)
    )
    seconds = time.monotonic() - started
    pixels = np.concatenate(list(stored_images(job.path).batches(SAMPLING_BATCH)))
    x = DataScaling(256).to_model(torch.from_numpy(pixels).permute(0, 3, 1, 2))
    return data.scaling.to_values(x), {
        "seconds": seconds,
        "images_per_second": config.num_samples / seconds,
        "evaluations_per_second": config.num_samples * table.num_evaluations / seconds,
        "num_samples": config.num_samples,
        "sampler": table.name,
        "steps": table.num_evaluations,
        "batch_size": min(SAMPLING_BATCH, config.num_samples),
    }


def _score(
    unet: UNet, diffusion: Diffusion, held_out: ImageData, config: DemoConfig, bars: Bars
) -> tuple[likelihood.Bound, dict[str, Any]]:
    update, started = bars.counting("scoring", len(held_out)), time.monotonic()
    bound = likelihood.bound(
        unet,
        diffusion,
        held_out.to_model(held_out.images),
        levels=held_out.scaling.levels or 256,
        seed=config.seed,
        on_progress=lambda done, total: update(len(held_out) * done / total),
    )
    return bound, {
        "num_images": len(held_out),
        "timesteps": diffusion.num_timesteps,
        "evaluations": bound.evaluations,
        "seconds": time.monotonic() - started,
    }


def _yardsticks(train: ImageData, held_out: ImageData) -> dict[str, Any]:
    levels = held_out.scaling.levels or 256
    return {
        "unit": f"bits per pixel, each pixel one of {levels} grey values",
        "uniform_bits_per_dim": float(np.log2(levels)),
        "independent_pixels_bits_per_dim": metrics.independent_pixels_bits(
            train.images.numpy(), held_out.images.numpy(), levels
        ),
    }


def _judges(train: ImageData, config: DemoConfig) -> dict[str, metrics.DigitClassifier]:
    images, labels = train.to_model(train.images).numpy(), _labels(train)
    return {
        "classifier": metrics.DigitClassifier(images, labels, members=config.classifiers),
        "strict_classifier": metrics.DigitClassifier(images, labels, rejects=True, members=config.classifiers),
    }


def _judge(judge: metrics.DigitClassifier, samples: Tensor, train: ImageData, held_out: ImageData) -> dict[str, Any]:
    """What a classifier makes of the samples, of real digits it has not seen, and of images that show nothing."""
    real = metrics.recognition(judge.probabilities(held_out.to_model(held_out.images).numpy()), _labels(held_out))
    nothing = metrics.scrambled(train.to_model(train.images).numpy(), 1000, seed=1)
    kind = "mean of multi-layer perceptrons, trained on the digits' train split"
    return {
        "kind": f"{kind} and on scrambled images as an eleventh class" if judge.rejects else kind,
        "samples": metrics.recognition(judge.probabilities(samples.numpy())).to_dict(),
        "held_out": real.to_dict(),
        "scrambled": metrics.recognition(judge.probabilities(nothing)).to_dict(),
    }


def _label(judge: metrics.DigitClassifier, samples: Tensor) -> list[tuple[int, float]]:
    probabilities = judge.probabilities(samples.numpy())
    return [(int(row.argmax()), float(row.max())) for row in probabilities]


def _evaluate(out: Path, samples: Tensor, train: ImageData, held_out: ImageData) -> dict[str, Any]:
    """As `fastdiff evaluate` does: samples and held-out images against the training images; writes its report."""
    pixels = np.ascontiguousarray(to_uint8(samples).permute(0, 2, 3, 1).numpy())
    features, settings = open_features("pixels", train.shape[0]), EvaluationSettings()
    of_held_out = ImageSet.of_source(held_out)
    # The distance is biased upwards for small sets: as many samples are the ones to compare with the held-out images.
    sets = [ImageSet.of_array(pixels, "samples"), of_held_out, ImageSet.of_array(pixels[: len(held_out)], "samples")]
    scores, reference = evaluate(sets, ImageSet.of_source(train), features, settings)
    assert isinstance(reference, Measured)
    EvaluationReport(scores[:1], reference, "the training images", reference.sha256, features, settings).write(out)
    ours, theirs, as_many = (one.values for one in scores)
    return {
        "frechet_distance": {
            "features": FEATURES,
            "reference": "the training images",
            "samples": ours["fid"],
            "held_out": theirs["fid"],
            "as_many_samples_as_held_out": as_many["fid"],
            "num_samples": len(pixels),
            "num_held_out": len(held_out),
        },
        "evaluation": {"samples": ours, "held_out": theirs, "as_many_samples_as_held_out": as_many},
    }


def _copies(samples: Tensor, train: ImageData, held_out: ImageData) -> dict[str, float]:
    pixels = [part.to_model(part.images).numpy() for part in (train, held_out)]
    return metrics.copy_report(samples.numpy(), *pixels).to_dict()


def delete_run(out: Path) -> None:
    """Delete a training run from the folder that it wrote to, and nothing else."""
    for name in ("checkpoints", LOGS_FOLDER):
        if (out / name).is_dir():
            shutil.rmtree(out / name)
    for name in (METRICS_FILE, REPORT_FILE):
        (out / name).unlink(missing_ok=True)
    pictures = out / PICTURES_FOLDER
    for path in pictures.glob("step_*.png"):
        path.unlink()
    if pictures.is_dir() and not any(pictures.iterdir()):
        pictures.rmdir()


def _labels(data: ImageData) -> Any:
    assert data.labels is not None
    return data.labels.numpy()


def _write_json(path: Path, values: dict[str, Any]) -> None:
    write_text(path, json.dumps(values, indent=2, ensure_ascii=False) + "\n")
