"""What reading images costs, for each kind of source, alone and while a network trains.

    python bench/data_loading.py digits|Ho [--steps 8]

Makes small files in a temporary folder and writes the network into bench/results/data_loading.json and .md, beside the
other that is there; a call takes a minute. Alone,
the batches of a training are drawn one after the other, with nothing to hide behind: images/s, and processor time for
an image. While a network trains, what counts is how long its step waits for its images: the share of a step that passes
in `Batches.at`, which includes the flips and the copy to the network's memory format. Where threads of a reader and of
the network share the processors, the processor time of reading is part of a step as well: it is given as the share of
the processors' time in a step. Pictures are decoded by threads, as everywhere, and for comparison by as many processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import json
import multiprocessing
import os
import statistics
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import machine
from PIL import Image

import fastdiff as fd
from fastdiff.data.opening import DataOptions, open_images
from fastdiff.data.pictures import PictureImages
from fastdiff.data.source import ImageSource
from fastdiff.training.batches import Batches

RESULTS = Path(__file__).parent / "results" / "data_loading"
NUM = 256
# Preset, side and channels of the images, images of a step, and steps that are measured.
NETWORKS = {"digits": ("digits", 8, 1, 64, 8), "Ho": ("ho-cifar10", 32, 3, 16, 1)}
# A step of the Ho network takes seconds: it is trained on these alone.
HEAVY = ("memory", "folder of PNG", "the same, random crops")


def make_files(root: Path, side: int, channels: int) -> dict[str, tuple[str, DataOptions]]:
    """Files of random images, and how each is opened: what it is called, the source and its options."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (NUM, side, side, channels), dtype=np.uint8)
    pictures = [Image.fromarray(image[..., 0] if channels == 1 else image) for image in images]
    for index, picture in enumerate(pictures):
        path = root / f"png/c{index % 10}/{index:05d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path)
        large = picture.resize((320, 256), Image.Resampling.BICUBIC)
        (root / "jpeg").mkdir(exist_ok=True)
        large.save(root / f"jpeg/{index:05d}.jpg", quality=90)
    np.save(root / "images.npy", images)
    np.savez(root / "images.npz", images)
    with zipfile.ZipFile(root / "edm.zip", "w") as archive:
        for path in sorted((root / "png").rglob("*.png")):
            archive.write(path, path.relative_to(root / "png"))
    found = {
        "memory": (f"{root}/png", DataOptions()),
        "npy, mapped": (f"{root}/images.npy", DataOptions(storage="disk", layout="NHWC")),
        "npz, mapped": (f"{root}/images.npz", DataOptions(storage="disk", layout="NHWC")),
        "folder of PNG": (f"{root}/png", DataOptions(storage="disk")),
        "the same, cached": (f"{root}/png", DataOptions(cache=f"{root}/cache")),
        "ZIP of PNG": (f"{root}/edm.zip", DataOptions()),
        "JPEG of 320x256, resized": (f"{root}/jpeg", DataOptions(storage="disk", size=side, channels=channels)),  # type: ignore[arg-type]
        "the same, random crops": (
            f"{root}/jpeg",
            DataOptions(size=side, crop="random", channels=channels),  # type: ignore[arg-type]
        ),
    }
    if channels == 3 and side == 32:
        (root / "cifar").mkdir()
        for number in range(1, 6):
            records = np.zeros((NUM // 5, 3073), np.uint8)
            (root / f"cifar/data_batch_{number}.bin").write_bytes(records.tobytes())
        found["CIFAR-10's batches"] = (f"{root}/cifar", DataOptions())
    if importlib.util.find_spec("datasets") is not None:
        import datasets

        datasets.disable_progress_bars()
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": pictures}, features=features).save_to_disk(f"{root}/table")
        found["data set of Hugging Face"] = (f"{root}/table", DataOptions())
    return found


_opened: list[ImageSource] = []


def _open(source: str, how: DataOptions) -> None:
    _opened.append(open_images(source, how))


def _read(indices: Any, draws: Any) -> Any:
    return _opened[0].read(indices, draws)


class Processes:
    """In the place of a reader's threads: as many processes, which have opened the source themselves."""

    def __init__(self, source: str, how: DataOptions, num: int) -> None:
        context = multiprocessing.get_context("forkserver")
        self.pool = ProcessPoolExecutor(num, context, _open, (source, how))

    def submit(self, run: Any, read: Any, indices: Any, draws: Any) -> Future[Any]:
        """As a thread pool is called by `ReadAhead`."""
        return self.pool.submit(_read, indices, draws)


@contextmanager
def reading(batches: Batches, processes: Processes | None) -> Iterator[None]:
    """Within the block processes read, if there are some."""
    if processes is not None:
        batches._reader._pool = processes  # type: ignore[assignment]
    yield
    batches._reader.forget(())


def alone(
    data: ImageSource, batch_size: int, processes: Processes | None = None, seconds: float = 0.5
) -> dict[str, float]:
    """Images/s of batches drawn one after the other, and processor time for an image."""
    config = fd.TrainConfig(steps=1 << 20, batch_size=batch_size)
    batches = Batches(data, config, None, torch.device("cpu"))
    with reading(batches, processes):
        return _alone(batches, batch_size, seconds)


def _alone(batches: Batches, batch_size: int, seconds: float) -> dict[str, float]:
    places = np.arange(batch_size)
    for step in range(3):
        batches.at(step, places)
    step, busy, started = 3, time.process_time(), time.perf_counter()
    while time.perf_counter() - started < seconds:
        batches.at(step, places)
        step += 1
    num = (step - 3) * batch_size
    return {
        "images_per_second": num / (time.perf_counter() - started),
        "processor_us_per_image": 1e6 * (time.process_time() - busy) / num,
    }


def training(
    data: ImageSource, preset: str, batch_size: int, steps: int, folder: str, processes: Processes | None = None
) -> dict[str, float]:
    """Milliseconds of a training step, and of it, waiting for images."""
    torch.manual_seed(0)
    unet = fd.UNet(dataclasses.replace(fd.UNetConfig.preset(preset), num_classes=None))
    diffusion = fd.Diffusion(fd.NoiseSchedule.linear(1000), variance="fixed_large")
    trainer = fd.Trainer(unet, diffusion, data, fd.TrainConfig(steps=1 << 20, batch_size=batch_size), folder)
    unet.train()
    waited: list[float] = []
    trainer.batches.at = _timed(trainer.batches.at, waited)  # type: ignore[method-assign]
    taken = []
    with reading(trainer.batches, processes):
        for step in range(steps + 2):
            started = time.perf_counter()
            trainer._train_step(step)
            taken.append(time.perf_counter() - started)
    # The first steps begin with nothing read ahead.
    return {"step_ms": 1e3 * statistics.median(taken[2:]), "wait_ms": 1e3 * statistics.median(waited[2:])}


def by_processes(
    data: PictureImages, source: str, how: DataOptions, row: dict[str, Any], preset: str | None, steps: int, folder: str
) -> dict[str, float]:
    """What processes read instead of threads, alone and while a network trains."""
    processes = Processes(source, how, data.workers)
    found = {"images_per_second": alone(data, row["batch_size"], processes)["images_per_second"]}
    if preset is not None:
        found |= training(data, preset, row["batch_size"], steps, f"{folder}/{row['source']} apart", processes)
    processes.pool.shutdown(cancel_futures=True)
    return {f"processes_{name}": value for name, value in found.items()}


def _timed(function: Callable[..., Any], seconds: list[float]) -> Callable[..., Any]:
    def timed(*arguments: Any) -> Any:
        started = time.perf_counter()
        result = function(*arguments)
        seconds.append(time.perf_counter() - started)
        return result

    return timed


def main() -> None:
    """Measure all of it and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("network", choices=list(NETWORKS))
    parser.add_argument("--steps", type=int, help="for each source; 8 of the digits' network, 1 of Ho's")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about = machine()
    network = options.network
    preset, side, channels, batch_size, steps = NETWORKS[network]
    steps = steps if options.steps is None else options.steps
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for name, (source, how) in make_files(Path(folder), side, channels).items():
            data = open_images(source, how)
            row: dict[str, Any] = {"source": name, "batch_size": batch_size}
            row |= alone(data, batch_size)
            trains = network == "digits" or name in HEAVY
            if trains:
                row |= training(data, preset, batch_size, steps, f"{folder}/run {name}")
                processors = torch.get_num_threads()
                row["wait_share"] = row["wait_ms"] / row["step_ms"]
                busy = 1e-3 * row["processor_us_per_image"] * batch_size
                row["processor_share"] = busy / processors / row["step_ms"]
            if isinstance(data, PictureImages):
                # Of the slow network a step with processes says no more.
                slow = preset if trains and network == "digits" else None
                row |= by_processes(data, source, how, row, slow, steps, folder)
            rows.append(row)
            print(row, flush=True)
    path = options.out.with_suffix(".json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {name: kept[name] for name in NETWORKS if name in kept} | {network: {"machine": about, "rows": rows}}
    _write(options.out, found)


def _write(out: Path, found: dict[str, Any]) -> None:
    text = f"{NUM} images of 8x8 grey (digits' network) or 32x32 RGB (Ho's). The share of a step is the time that it\n"
    text += "waits for its images; the share of processors is what reading them takes of the processors' time. The\n"
    text += "last two columns are those of processes that decode instead of threads.\n\n"
    text += "| network, batch | source | alone, images/s | step, ms | waits, ms | share of a step | of processors "
    text += "| processes: images/s | step, ms |\n"
    text += "|---|---|---|---|---|---|---|---|---|\n"
    for network, row in ((network, row) for network, told in found.items() for row in told["rows"]):
        text += f"| {network}, {row['batch_size']} | {row['source']} | {row['images_per_second']:,.0f} "
        if "step_ms" in row:
            text += f"| {row['step_ms']:.1f} | {row['wait_ms']:.2f} | {100 * row['wait_share']:.2f}% "
            text += f"| {100 * row['processor_share']:.2f}% "
        else:
            text += "| | | | "
        text += f"| {row['processes_images_per_second']:,.0f} " if "processes_images_per_second" in row else "| "
        text += f"| {row['processes_step_ms']:.1f} |\n" if "processes_step_ms" in row else "| |\n"
    for network, told in found.items():
        about = told["machine"]
        versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
        text += f"\n{network}: {about['processor']}, {about['threads']} threads, {about['isa']}, load {about['load']}, "
        text += f"commit {about['commit']}; {versions}; {os.cpu_count()} threads or processes read.\n"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.with_suffix(".json").write_text(json.dumps(found, indent=1) + "\n")
    out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
