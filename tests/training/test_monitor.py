"""What is looked at while a network trains: the same numbers from the same weights, and no trace in the training."""

from __future__ import annotations

import dataclasses
import math
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from fastdiff import likelihood
from fastdiff.evaluation.metrics import dct_features, frechet_distance
from fastdiff.files.checkpoint import latest_checkpoint, load_model
from fastdiff.pipeline import Pipeline
from fastdiff.process import noise
from fastdiff.training import monitor
from fastdiff.training.monitor import LossByTimestep
from fastdiff.training.trainer import Trainer, TrainProgress
from support.processes import together
from support.tolerances import FLOAT32_FEW
from support.training_runs import CONFIG, HYBRID, SIMPLE, digests, images, metrics, network, trainer

LOOKS = {"picture_every": 3, "num_pictures": 6, "evaluate_every": 3, "num_evaluated": 8, "trackers": ()}


def looked(folder: Path, unet: dict[str, Any] | None = None, labels: bool = False, **changes: Any) -> Trainer:
    """A trainer that looks at its network at steps 3 and 6, with nine images held out."""
    config = dataclasses.replace(CONFIG, **(LOOKS | changes))
    held_out = images(9, labels=labels, seed=1)
    diffusion = HYBRID if config.loss == "hybrid" else SIMPLE
    return Trainer(network(**(unet or {})), diffusion, images(labels=labels), config, folder, held_out=held_out)


def values(folder: Path) -> list[dict[str, Any]]:
    """What the log has of each look, but for the time that it took."""
    entries: list[dict[str, Any]] = metrics(folder)
    return [
        {key: value for key, value in entry.items() if key != "seconds_looked"}
        for entry in entries
        if "seconds_looked" in entry
    ]


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "hybrid": {"unet": {"out_channels": 2}, "loss": "hybrid"},
    "classes": {"unet": {"num_classes": 4}, "labels": True, "label_dropout": 0.2, "picture_guidance": 2.0},
    "small image": {"unet": {"in_channels": 2}, "condition": "low_res:2"},
    "hole": {"unet": {"in_channels": 3}, "condition": "inpaint"},
}


@pytest.mark.parametrize("case", CASES)
def test_a_run_that_is_looked_at_ends_in_the_same_bytes(case: str, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    result = looked(tmp_path / "with", **CASES[case]).run()
    assert result.notes == ()
    blind = looked(tmp_path / "without", **{**CASES[case], "picture_every": 0, "evaluate_every": 0}).run()
    assert torch.equal(torch.random.get_rng_state(), state)
    with_looks, without = digests(result.checkpoint), digests(blind.checkpoint)
    # The settings are not the same.
    assert with_looks.pop("config.json") != without.pop("config.json")
    assert with_looks == without
    found = values(tmp_path / "with")
    assert [entry["step"] for entry in found] == [3, 6]
    assert set(found[0]) == {
        "step", "picture", "held_out_loss", "held_out_bits_per_dim", "held_out_bits_per_dim_error",
        "frechet_distance", "frechet_distance_held_out",
    }  # fmt: skip
    assert all(math.isfinite(value) for key, value in found[1].items() if key != "picture")
    assert not values(tmp_path / "without")


def run_of_two(rank: int, folder: Path, changes: dict[str, Any]) -> list[int]:
    """Train beside another process; at which steps this one told of a look."""
    seen: list[TrainProgress] = []
    looked(folder, batch_size=6, **changes).run(progress=seen.append)
    return [entry.step for entry in seen if entry.look is not None]


def test_of_two_processes_the_first_looks_and_the_training_is_the_same(tmp_path: Path) -> None:
    outcomes = together(2, run_of_two, tmp_path / "with", {})
    assert [outcome.error for outcome in outcomes] == [None, None]
    assert [outcome.value for outcome in outcomes] == [[3, 6], []]
    assert [entry["step"] for entry in values(tmp_path / "with")] == [3, 6]
    together(2, run_of_two, tmp_path / "without", {"picture_every": 0, "evaluate_every": 0})
    newest = [latest_checkpoint(tmp_path / folder) for folder in ("with", "without")]
    assert all(newest)
    found = [digests(checkpoint) for checkpoint in newest if checkpoint is not None]
    for name in ("model.safetensors", "training.safetensors"):
        assert found[0][name] == found[1][name]


def test_looks_are_those_of_an_interrupted_run_and_do_not_depend_on_when_else_it_is_looked_at(tmp_path: Path) -> None:
    looked(tmp_path / "whole").run()
    looked(tmp_path / "parts").run(until=4)
    looked(tmp_path / "parts", picture_every=2, evaluate_every=6).run()
    whole, parts = values(tmp_path / "whole"), values(tmp_path / "parts")
    assert whole[1] == parts[-1]
    # The end of a call is looked at as well, and what lay behind a checkpoint is made anew.
    assert [entry["step"] for entry in parts] == [3, 4, 6]
    pictures = [(tmp_path / folder / "pictures" / "step_00000006.png").read_bytes() for folder in ("whole", "parts")]
    assert pictures[0] == pictures[1]


def test_pictures_behind_the_checkpoint_are_dropped(tmp_path: Path) -> None:
    looked(tmp_path).run(until=4)
    folder = tmp_path / "pictures"
    for name in ("step_00000005.png", "mine.png"):
        (folder / name).write_bytes(b"")
    looked(tmp_path, picture_every=0).run()
    assert sorted(path.name for path in folder.iterdir()) == ["mine.png", "step_00000003.png", "step_00000004.png"]


def test_numbers_are_those_of_the_averaged_weights(tmp_path: Path) -> None:
    """Against the likelihood, the loss and the distance as one computes them of the model that was saved."""
    looked(tmp_path).run()
    found = values(tmp_path)[-1]
    model = load_model(tmp_path)
    held_out, train = images(9, seed=1), images()
    chosen = [i * 9 // 8 for i in range(8)]
    x = held_out.to_model(held_out.images[chosen])
    exact = likelihood.bound(model.unet, model.diffusion, x, levels=17, seed=3, sample_ids=chosen)
    # An estimate from a third of the terms, of the same noise.
    assert found["held_out_bits_per_dim"] == pytest.approx(exact.mean, rel=0.2)
    pipe = Pipeline(model.unet, model.diffusion, model.scaling, model.metadata)
    samples = model.scaling.to_model(model.scaling.to_values(pipe.sample(8, steps=20, seed=3)))
    features = [dct_features(part.numpy()) for part in (samples, train.to_model(train.images), x)]
    # The same numbers from batches of another size.
    assert found["frechet_distance"] == pytest.approx(frechet_distance(*features[:2]), rel=FLOAT32_FEW)
    assert found["frechet_distance_held_out"] == pytest.approx(frechet_distance(*features[:0:-1]), rel=FLOAT32_FEW)


def test_held_out_loss_is_the_objectives_over_all_timesteps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With as many draws as there are timesteps each is taken once, and the loss is the mean over all of them."""
    monkeypatch.setattr(monitor, "_LOSS_TIMES", 20)
    run = looked(tmp_path)
    run.run()
    held_out = images(9, seed=1)
    chosen = torch.tensor([i * 9 // 8 for i in range(8)])
    model = load_model(tmp_path)
    noising = SIMPLE.noising_table()
    losses = []
    for t in range(20):
        z = drawn_noise(chosen, t)
        x0 = held_out.to_model(held_out.images[chosen]).double()
        x_t = noising[t, 0] * x0 + noising[t, 1] * z
        target = noising[t, 2] * x0 + noising[t, 3] * z
        with torch.no_grad():
            output = model.unet.eval()(x_t.float(), torch.full((8,), t))
        losses.append((output.double() - target).square().mean())
    assert values(tmp_path)[-1]["held_out_loss"] == pytest.approx(float(torch.stack(losses).mean()), rel=FLOAT32_FEW)


def drawn_noise(ids: torch.Tensor, t: int) -> torch.Tensor:
    drawn = noise.normals(3, ids.numpy(), 16, noise.Stream.LIKELIHOOD, t)
    return torch.from_numpy(drawn).reshape(len(ids), 1, 4, 4)


def test_picture_has_a_row_for_each_class(tmp_path: Path) -> None:
    looked(tmp_path, **CASES["classes"]).run()
    with Image.open(tmp_path / "pictures" / "step_00000006.png") as picture:
        # Three classes, without the null one, of two samples each, 64 pixels a side, with a line of text below.
        assert picture.width >= 2 * 64
        assert 3 * (64 + 12) < picture.height < 4 * (64 + 12)


def test_loss_by_timestep_is_the_mean_of_training_losses() -> None:
    subject = LossByTimestep(20, torch.device("cpu"))
    t, losses = torch.tensor([0, 1, 19, 7, 19]), torch.tensor([1.0, 3.0, 5.0, 7.0, 8.0])
    subject.observe(t[:2], losses[:2])
    subject.observe(t[2:], losses[2:])
    assert subject.take() == [2.0, None, None, 7.0, None, None, None, None, None, 6.5]
    assert subject.take() == [None] * 10
    assert len(LossByTimestep(4, torch.device("cpu")).take()) == 4


def test_loss_by_timestep_adds_up_to_the_loss(tmp_path: Path) -> None:
    trainer(tmp_path, log_every=6, trackers=()).run()
    (entry,) = metrics(tmp_path)
    by_timestep: Any = entry["loss_by_timestep"]
    assert len(by_timestep) == 10
    known = [value for value in by_timestep if value is not None]
    assert min(known) <= entry["loss"] <= max(known)


def test_time_of_looking_is_kept_out_of_the_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = monitor.Monitor.look

    def slow(self: Any, *arguments: Any, **options: Any) -> Any:
        time.sleep(0.5)
        return own(self, *arguments, **options)

    monkeypatch.setattr(monitor.Monitor, "look", slow)
    seen: list[TrainProgress] = []
    looked(tmp_path, log_every=1, evaluate_every=0).run(progress=seen.append)
    # A step of five tiny images takes nowhere near half a second.
    assert all(entry.images_per_second > 5 / 0.5 for entry in seen)
    assert [entry.look is not None for entry in seen] == [False, False, True, False, False, True]
    assert seen[-1].seconds_looked > 0


def test_a_look_that_fails_is_said_once_and_training_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ValueError("no such thing")

    monkeypatch.setattr(monitor, "bound_estimate", fail)
    result = looked(tmp_path).run()
    assert result.step == 6
    assert result.notes == (
        "scoring held-out images failed and is left out, while the training goes on: no such thing",
    )
    assert ["frechet_distance" in entry for entry in values(tmp_path)] == [True, True]


def test_a_signal_ends_a_look_and_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = monitor.sample

    def signalled(*arguments: Any, **options: Any) -> Any:
        signal.raise_signal(signal.SIGTERM)
        return own(*arguments, **options)

    monkeypatch.setattr(monitor, "sample", signalled)
    monkeypatch.setattr(monitor, "_BATCH", 4)
    with pytest.raises(KeyboardInterrupt, match="training stopped at step 4 and was saved"):
        looked(tmp_path).run()
    assert values(tmp_path) == []


def test_samples_of_a_network_that_is_lost_are_drawn_grey(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(network: nn.Module) -> None:
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.fill_(math.nan)

    run = looked(tmp_path, evaluate_every=0)
    monkeypatch.setattr(run.ema, "copy_to", lost)
    assert run.run().notes == ()
    with Image.open(tmp_path / "pictures" / "step_00000006.png") as picture:
        assert (np.asarray(picture)[40:60, 20:40] == 128).all()


HELD_OUT: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another size": ({"images": torch.zeros(2, 1, 8, 8, dtype=torch.uint8)}, {}, r"shape \[C, H, W\] \[1, 4, 4\], got"),
    "other levels": ({"scaling": dataclasses.replace(images().scaling, levels=256)}, {}, "levels 17, got 256"),
    "none": ({"images": torch.zeros(0, 1, 4, 4, dtype=torch.uint8)}, {}, "there are none"),
    "no labels": ({}, {"num_classes": 3}, "need labels, as the network has 3 classes"),
    "other classes": (
        {"labels": torch.zeros(12, dtype=torch.int64), "label_names": ("cat",)},
        {"num_classes": 3},
        r"must have the classes of those trained on, None, got \('cat',\)",
    ),
}


@pytest.mark.parametrize("case", HELD_OUT)
def test_held_out_images_of_another_kind_are_refused(case: str, tmp_path: Path) -> None:
    changes, unet, message = HELD_OUT[case]
    held_out = dataclasses.replace(images(), **changes)
    with pytest.raises(ValueError, match=f"the held-out images.* {message}|the held-out images: {message}"):
        Trainer(network(**unet), SIMPLE, images(labels=bool(unet)), CONFIG, tmp_path, held_out=held_out)


def test_settings_of_looks_may_change_when_a_run_goes_on(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=2)
    run = looked(tmp_path, picture_every=1, num_pictures=2)
    assert run.step == 2
    assert run.changes == {}


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "guidance without a null class": ({"picture_guidance": 2.0}, "needs a null class"),
    "a word": ({"picture_guidance": "much"}, "picture_guidance must be a finite number or None, got 'much'"),
    "one sample": ({"num_evaluated": 1}, "num_evaluated must be an int, at least 2, got 1"),
    "no sample": ({"num_pictures": 0}, "num_pictures must be an int, at least 1, got 0"),
    "never": ({"picture_every": -1}, "picture_every must be an int, at least 0, got -1"),
    "an unknown tracker": ({"trackers": ["wandbb"]}, "unknown name in trackers, 'wandbb': did you mean 'wandb'"),
    "a tracker alone": ({"trackers": "wandb"}, "trackers must be a list of names among tensorboard, wandb, trackio"),
}


@pytest.mark.parametrize("case", SETTINGS)
def test_settings_that_do_not_fit_are_refused(case: str) -> None:
    changes, message = SETTINGS[case]
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CONFIG, **changes)
