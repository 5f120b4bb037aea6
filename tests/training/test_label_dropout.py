"""Label dropout: which labels are dropped, what it trains, and that guidance then leads to the class asked for."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.files.data import DataScaling, ImageData
from fastdiff.training.config import TrainConfig
from fastdiff.training.trainer import Trainer

CLASSES = 3
BATCH = 16


def pictures(num: int = 48) -> ImageData:
    """Class c is of one grey, with some noise: dark, middle and bright."""
    labels = torch.arange(num) % CLASSES
    noise = torch.randint(0, 20, (num, 1, 8, 8), generator=torch.Generator().manual_seed(0))
    images = (40 + 80 * labels[:, None, None, None] + noise).to(torch.uint8)
    return ImageData(images, labels, DataScaling(256), "greys", ("dark", "middle", "bright"))


def trainer(folder: Path, steps: int = 5, num_classes: int | None = CLASSES + 1, **changes: Any) -> Trainer:
    torch.manual_seed(0)
    net = fd.UNet(
        fd.UNetConfig(
            image_size=8, in_channels=1, out_channels=1, channels=16, channel_mult=(1,), num_res_blocks=1,
            attention_resolutions=(), norm_groups=8, num_classes=num_classes,
        )
    )  # fmt: skip
    options = {"batch_size": BATCH, "warmup_steps": 0, "learning_rate": 2e-3, "flip": False, "ema_decay": 0.99}
    config = TrainConfig(steps=steps, **(options | {"label_dropout": 0.5} | changes))
    return Trainer(net, fd.Diffusion(fd.NoiseSchedule.cosine(50), prediction="v"), pictures(), config, folder)


def labels_of(run: Trainer, steps: int) -> Tensor:
    found = []
    for step in range(steps):
        labels = run.batches.at(step, np.arange(BATCH)).labels
        assert labels is not None
        found.append(labels)
    return torch.stack(found)


def test_dropped_labels_are_a_function_of_seed_and_step(tmp_path: Path) -> None:
    kept = labels_of(trainer(tmp_path / "a", label_dropout=0.0), 200)
    some = labels_of(trainer(tmp_path / "b", label_dropout=0.25), 200)
    again = labels_of(trainer(tmp_path / "c", label_dropout=0.25), 200)
    other = labels_of(trainer(tmp_path / "d", label_dropout=0.25, seed=1), 200)
    assert torch.equal(some, again)
    dropped = some == CLASSES
    assert torch.equal(some[~dropped], kept[~dropped])
    # 3,200 draws: the share's deviation is 0.0077, and this is six of them.
    assert abs(float(dropped.double().mean()) - 0.25) < 0.046
    # Every place of the batch has its own draws, and so has every seed.
    assert bool(dropped.any(dim=0).all())
    assert not torch.equal(dropped, other == CLASSES)
    # What is dropped at a small share is dropped at a large one.
    more = labels_of(trainer(tmp_path / "e", label_dropout=0.5), 200) == CLASSES
    assert bool((more | ~dropped).all())


def test_null_class_is_trained_by_dropped_labels_alone(tmp_path: Path) -> None:
    for share, moves in ((0.0, False), (0.5, True)):
        run = trainer(tmp_path / str(share), steps=20, label_dropout=share)
        assert run.unet.label_emb is not None
        before = run.unet.label_emb.weight.detach().clone()
        run.run()
        moved = (run.unet.label_emb.weight.detach() - before).abs().amax(dim=1)
        assert bool((moved[:CLASSES] > 0).all())
        assert bool(moved[CLASSES] > 0) == moves


def test_resumed_run_drops_the_same_labels(tmp_path: Path) -> None:
    whole, parts = trainer(tmp_path / "whole", steps=6), trainer(tmp_path / "parts", steps=3)
    whole.run()
    parts.run()
    rest = trainer(tmp_path / "parts", steps=6)
    rest.run()
    for one, two in zip(whole.unet.parameters(), rest.unet.parameters(), strict=True):
        assert torch.equal(one, two)


def test_checkpoints_of_before_go_on_without_dropout(tmp_path: Path) -> None:
    trainer(tmp_path, steps=2, label_dropout=0.0).run()
    (folder,) = (tmp_path / "checkpoints").glob("step_*")
    path = folder / "config.json"
    config = json.loads(path.read_text())
    del config["training"]["label_dropout"]
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"label_dropout: 0\.0 in the checkpoint, 0\.5 now"):
        trainer(tmp_path, steps=4).run()
    assert trainer(tmp_path, steps=4, label_dropout=0.0).run().step == 4


@pytest.mark.slow
def test_guidance_of_what_came_out_leads_to_the_class_asked_for(tmp_path: Path) -> None:
    trainer(tmp_path, steps=400, label_dropout=0.3).run()
    pipe = fd.Pipeline.from_pretrained(tmp_path)
    assert pipe.classes.null == CLASSES
    asked = ["dark"] * 8 + ["bright"] * 8
    means = {}
    for guidance in (None, 3.0):
        images = pipe.sample(16, sampler="ddim", steps=10, labels=asked, guidance=guidance, progress=False)
        values = images.double().mean(dim=(1, 2, 3))
        means[guidance] = float(values[8:].mean() - values[:8].mean())
    # Dark and bright are 160 of 255 values apart; guided samples no less than others.
    assert means[None] > 0.5
    assert means[3.0] > means[None]


CASES: dict[str, tuple[dict[str, Any], str]] = {
    "no room for a null class": ({"num_classes": CLASSES}, r"num_classes = 4, got 3, whose last the data use"),
    "a network without classes": ({"num_classes": None}, "for a network with classes, and this one has none; got 0.5"),
    "a share of one": ({"label_dropout": 1.0}, r"label_dropout must be a number in \[0, 1\), got 1.0"),
    "a word": ({"label_dropout": "a tenth"}, r"label_dropout must be a number in \[0, 1\), got 'a tenth'"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_does_not_fit_is_refused(tmp_path: Path, name: str) -> None:
    changes, message = CASES[name]
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, **changes)
