"""The images of a step: the same whatever the number of processes, the micro-batch and the threads that read ahead."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.data.opening import DataOptions, open_images
from fastdiff.data.source import UnreadableImageError
from fastdiff.training.batches import Batches
from fastdiff.training.trainer import TrainConfig, Trainer
from fastdiff.training.world import World
from support.pictures import picture, save
from support.training_runs import CONFIG, SIMPLE, digests, network

SETTINGS = TrainConfig(steps=4, batch_size=8, seed=5, label_dropout=0.2)


def folder(root: Path, num: int = 11, *, grey: bool = False, size: tuple[int, int] = (8, 8)) -> Path:
    for index in range(num):
        save(root / f"{'abc'[index % 3]}/{index:02d}.png", picture(*size, 1 if grey else 3))
    return root


def drawn(data: Any, processes: int, micro_batch: int, steps: int = 4) -> str:
    """A hash of the images and labels of some steps, put together from all processes in the order of places."""
    digest = hashlib.sha256()
    worlds = [World(rank, processes) for rank in range(processes)]
    readers = [Batches(data, SETTINGS, 4, torch.device("cpu")) for _ in worlds]
    for step in range(steps):
        images, labels = torch.empty(8, *data.shape), torch.empty(8, dtype=torch.int64)
        for world, reader in zip(worlds, readers, strict=True):
            places = world.places(8)
            for first in range(0, len(places), micro_batch):
                part = places[first : first + micro_batch]
                batch = reader.at(step, part)
                assert batch.images.is_contiguous(memory_format=torch.channels_last)
                assert batch.labels is not None
                images[part], labels[part] = batch.images.float(), batch.labels
        digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
    return digest.hexdigest()


@pytest.mark.parametrize("crop", ["center", "random"])
def test_batches_are_the_same_whatever_the_processes_micro_batch_and_threads(tmp_path: Path, crop: Any) -> None:
    folder(tmp_path / "a", size=(12, 9))
    found = set()
    for workers in (1, 2, 5):
        data = open_images(tmp_path / "a", DataOptions(size=(8, 8), crop=crop, workers=workers))
        found |= {drawn(data, processes, micro) for processes in (1, 2) for micro in (1, 3, 8)}
    if crop == "center":
        # And those of data in memory.
        found.add(drawn(open_images(tmp_path / "a", DataOptions(size=(8, 8))), 1, 8))
    assert len(found) == 1


def test_batches_crops_follow_seed_step_and_place(tmp_path: Path) -> None:
    ramp = np.arange(400, dtype=np.uint16).reshape(1, 20, 20).repeat(3, 0).astype(np.float32) / 400
    np.save(tmp_path / "a.npy", ramp - 0.5)
    data = open_images(tmp_path / "a.npy", DataOptions(size=4, crop="random"))

    def corners(seed: int, step: int, batch_size: int = 6) -> list[float]:
        config = TrainConfig(steps=4, batch_size=batch_size, seed=seed, flip=False)
        reader = Batches(data, config, None, torch.device("cpu"))
        return [float(one) for one in reader.at(step, np.arange(batch_size)).images[:, 0, 0, 0]]

    first = corners(0, 0)
    assert len(set(first)) > 1
    assert corners(0, 0) == first
    # A larger batch begins with the smaller one's.
    assert corners(0, 0, 12)[:6] == first
    assert corners(0, 1) != first
    assert corners(1, 0) != first


def test_batches_read_what_the_next_step_will_ask_for(tmp_path: Path) -> None:
    data: Any = open_images(folder(tmp_path / "a"), DataOptions(workers=1))
    reader = Batches(data, SETTINGS, None, torch.device("cpu"))
    for step in range(3):
        for part in (np.arange(0, 8, 2)[:2], np.arange(0, 8, 2)[2:]):
            reader.at(step, part)
    assert [(step, np.frombuffer(places, np.int64).tolist()) for step, places in reader._reader._pending] == [
        (3, [0, 2]),
        (3, [4, 6]),
    ]


def run(root: Path, out: Path, *, until: int | None = None, **options: Any) -> Trainer:
    data = open_images(root, DataOptions(**options))
    unet = network(in_channels=1, out_channels=1)
    trainer = Trainer(unet, SIMPLE, data, dataclasses.replace(CONFIG, checkpoint_every=100), out)
    trainer.run(until=until)
    return trainer


def test_training_on_pictures_from_disk_ends_with_the_bytes_of_one_from_memory(tmp_path: Path) -> None:
    folder(tmp_path / "a", grey=True)
    folders = {}
    for name, options in {"memory": {}, "disk": {"workers": 2}, "cache": {"cache": str(tmp_path / "c")}}.items():
        run(tmp_path / "a", tmp_path / name, **options)
        folders[name] = digests(tmp_path / name / "checkpoints/step_00000006")
    for part in ("model.safetensors", "training.safetensors"):
        assert len({held[part] for held in folders.values()}) == 1
    # In the cache lies what lay in memory: the description is the same as well.
    assert folders["cache"]["config.json"] == folders["memory"]["config.json"]


def test_training_stops_and_is_saved_where_a_picture_is_damaged(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", grey=True)
    run(root, tmp_path / "whole", workers=2)
    # An image that the second step needs.
    trainer = run(root, tmp_path / "out", workers=2, until=1)
    path = trainer.data.files.open(int(trainer.batches._indices(1, np.arange(5))[3]))  # type: ignore[attr-defined]
    contents = Path(path).read_bytes()
    Path(path).write_bytes(b"x" * len(contents))
    with pytest.raises(
        UnreadableImageError, match=r"png: not an image; repair it.* stopped at step 1 and was saved to"
    ):
        trainer.run()
    # Repaired, it goes on and ends with the bytes of a run that was never stopped.
    Path(path).write_bytes(contents)
    run(root, tmp_path / "out", workers=2)
    ends = [digests(tmp_path / name / "checkpoints/step_00000006") for name in ("whole", "out")]
    assert ends[0] == ends[1]


def test_training_that_skips_is_resumed_with_the_same_images(tmp_path: Path) -> None:
    root = folder(tmp_path / "a", grey=True)
    (root / "b/04.png").write_text("damaged")
    run(root, tmp_path / "whole", skip_corrupt=True)
    for until in (2, 3, None):
        run(root, tmp_path / "out", skip_corrupt=True, until=until)
    ends = [digests(tmp_path / name / "checkpoints/step_00000006") for name in ("whole", "out")]
    assert ends[0] == ends[1]


@pytest.mark.parametrize("change", ["contents", "name", "another", "crop", "kept"])
def test_training_refuses_data_that_changed_since_the_checkpoint(tmp_path: Path, change: str) -> None:
    root = folder(tmp_path / "a", grey=True, size=(8, 8))
    run(root, tmp_path / "out", workers=2, size=4, until=2)
    options: dict[str, Any] = {"workers": 2, "size": 4}
    if change == "contents":
        save(root / "a/00.png", picture(8, 8, 1))
    elif change == "name":
        (root / "a/00.png").rename(root / "a/0.png")
    elif change == "another":
        save(root / "a/99.png", picture(8, 8, 1))
    elif change == "crop":
        options["resize"] = False
    else:
        options = {"size": 4}
    with pytest.raises(ValueError, match=r"is of another run; .*\n.* data\."):
        run(root, tmp_path / "out", **options)
