"""`fastdiff train`: which images are held out, and what it shows while it trains."""

import json

import numpy as np
import pytest

from fastdiff.cli.train_plan import plan_training
from support.command_line import fails, train_options, works

TRAIN = {"steps": 2000, "batch_size": 8, "warmup_steps": 0}


def plan(data, **train):
    unet = {"channels": 8, "channel_mult": [1], "num_res_blocks": 1, "norm_groups": 4, "attention_resolutions": []}
    return plan_training({"unet": unet, "data": data, "train": TRAIN | train})


@pytest.fixture
def array(tmp_path):
    """Where forty images of 8x8 lie; "other.npy" beside them has ten more."""
    values = np.random.default_rng(0).integers(0, 256, (50, 8, 8), dtype=np.uint8)
    np.save(tmp_path / "images.npy", values[:40])
    np.save(tmp_path / "other.npy", values[40:])
    return tmp_path / "images.npy"


def test_share_is_held_out_and_not_trained_on(array):
    found = plan({"source": str(array), "held_out": 0.1})
    assert (len(found.data), len(found.held_out)) == (36, 4)
    assert plan(found.settings["data"]).held_out is not None
    both = [part.read(np.arange(len(part))).numpy() for part in (found.data, found.held_out)]
    assert np.array_equal(np.unique(np.concatenate(both), axis=0), np.unique(np.load(array)[:, None], axis=0))


def test_other_images_are_held_out(array):
    found = plan({"source": str(array), "held_out": str(array.with_name("other.npy"))})
    assert (len(found.data), len(found.held_out)) == (40, 10)


def test_digits_hold_their_test_split_out_unless_told():
    assert plan({"source": "digits"}).held_out.source == "digits/test"
    assert plan({"source": "digits", "split": "all"}).held_out is None
    assert plan({"source": "digits", "held_out": "none"}).held_out is None
    assert len(plan({"source": "digits", "held_out": 0.5}).held_out) == 718


@pytest.mark.parametrize(("steps", "every"), [(2000, 200), (2, 100), (500, 100)])
def test_training_is_looked_at_ten_times(steps, every, array):
    blind, seeing = plan({"source": str(array)}, steps=steps), plan({"source": "digits"}, steps=steps)
    assert (blind.train.picture_every, blind.train.evaluate_every) == (every, 0)
    assert (seeing.train.picture_every, seeing.train.evaluate_every) == (every, every)
    assert plan({"source": "digits"}, steps=steps, picture_every=0, evaluate_every=7).train.evaluate_every == 7


def test_train_shows_what_it_sees(tmp_path):
    out = tmp_path / "run"
    looks = ["--picture-every", 2, "--evaluate-every", 4, "--held-out", 0.2, "--label-dropout", 0.2]
    small = ["--set", "train.num_evaluated=4", "--set", "train.num_pictures=10", "--set", "train.trackers=[]"]
    said = works(*train_options(out, *looks, *small))
    assert "287 images are held out, and 4 of them evaluated" in said
    assert f"step 2: {out}/pictures/step_00000002.png" in said
    line = next(line for line in said.splitlines() if line.startswith("step 4: "))
    assert "held-out loss " in line
    assert " bits/dim, Fréchet distance " in line
    assert line.endswith(f"{out}/pictures/step_00000004.png")
    assert f"what it looked like: {out}/report.html" in said
    assert f"next: fastdiff sample {out} --guidance 3 --label 0 --out samples.png" in said
    assert (out / "report.html").is_file()
    # It goes on with these settings, and the same images are held out.
    again = works("train", "--out", out, "--steps", 6)
    assert "step 6: " in again
    entries = [json.loads(text) for text in (out / "metrics.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if "picture" in entry] == [2, 4, 6]


def test_trackers_are_named_by_their_option(tmp_path):
    said = fails(*train_options(tmp_path / "run", "--tracker", "wandbb"))
    assert "--tracker" in said
    assert "did you mean 'wandb'" in said
