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
from fastdiff.evaluation import metrics
from fastdiff.files.atomic import write_text
from fastdiff.files.checkpoint import load_model
from fastdiff.files.data import ImageData, digits
from fastdiff.files.images import write_npz
from fastdiff.nets.recipes import RECIPES, build_diffusion
from fastdiff.nets.unet import UNet, UNetConfig
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.runner import SamplingStep, sample
from fastdiff.training.config import TrainConfig
from fastdiff.training.log import METRICS_FILE, PICTURES_FOLDER, read_metrics
from fastdiff.training.report import REPORT_FILE
from fastdiff.training.trackers import LOGS_FOLDER
from fastdiff.training.trainer import Trainer

__all__ = ["DemoConfig", "delete_run", "digits_diffusion", "digits_training", "digits_unet", "run_demo"]

FEATURES = "2-D DCT-II of the pixels in [-1, 1], orthonormal, all 8x8 coefficients; squared distance"
SAMPLING_BATCH = 200
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
        model = load_model(out, device=device)
        table = samplers.ddpm(model.diffusion)
        samples, sampling = _sample(model.unet, table, train, config, bars)
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
        done()
    result = {
        "likelihood": {**bound.summary(), **_yardsticks(train, scored), **scoring},
        "frechet_distance": _frechet(shown, train, held_out),
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


def _sample(
    unet: UNet, table: CoefficientTable, data: ImageData, config: DemoConfig, bars: Bars
) -> tuple[Tensor, dict[str, Any]]:
    """Samples 0, 1, 2, ... of the seed, rounded to the data's values."""
    update = bars.counting("sampling", config.num_samples)
    parts, started = [], time.monotonic()
    for first in range(0, config.num_samples, SAMPLING_BATCH):
        count = min(SAMPLING_BATCH, config.num_samples - first)

        def advance(step: SamplingStep, first: int = first, count: int = count) -> None:
            update(first + count * (step.row + 1) / step.num_rows)

        parts.append(
            sample(
                unet,
                table,
                shape=(count, *data.shape),
                seed=config.seed,
                sample_ids=list(range(first, first + count)),
                progress=False,
                callback=advance,
            )
        )
    seconds = time.monotonic() - started
    return data.scaling.to_values(torch.cat(parts)).cpu(), {
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


def _frechet(samples: Tensor, train: ImageData, held_out: ImageData) -> dict[str, Any]:
    of_train, of_held_out = (metrics.dct_features(part.to_model(part.images).numpy()) for part in (train, held_out))
    of_samples = metrics.dct_features(samples.numpy())
    return {
        "features": FEATURES,
        "reference": "the training images",
        "samples": metrics.frechet_distance(of_samples, of_train),
        "held_out": metrics.frechet_distance(of_held_out, of_train),
        # The distance is biased upwards for small sets, so this is the one to compare with the held-out images'.
        "as_many_samples_as_held_out": metrics.frechet_distance(of_samples[: len(of_held_out)], of_train),
        "num_samples": len(of_samples),
        "num_held_out": len(of_held_out),
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
