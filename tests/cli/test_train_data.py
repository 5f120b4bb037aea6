"""`fastdiff train` on data of every kind: from disk, not square, of many channels and of 16 bits, to samples."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from support.command_line import fails, works
from support.pictures import RNG, picture, save

TINY = ["--set", "unet.channels=8", "--set", "unet.channel_mult=[1,1]", "--set", "unet.num_res_blocks=1"]
TINY += ["--set", "unet.norm_groups=4", "--set", "unet.attention_resolutions=[]", "-T", "4", "--batch-size", "2"]


def train(out: Path, data: Any, *options: Any, steps: int = 2) -> str:
    return works("train", "--data", data, "--out", out, "--steps", steps, *TINY, *options)


def pictures(root: Path, height: int, width: int, num: int = 4) -> Path:
    for index in range(num):
        save(root / f"{index}.png", picture(height, width))
    return root


def test_train_on_images_that_are_not_square_to_samples_of_their_shape(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 20, 30)
    said = train(tmp_path / "out", tmp_path / "a", "--size", "8x16", "--set", "data.workers=2")
    assert "4 images of 3x8x16" in said
    works("sample", tmp_path / "out", "--num", 2, "--steps", 2, "--out", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (2, 3, 8, 16)
    # Continued by its folder alone.
    assert "going on from step 2 of 3" in works("train", "--out", tmp_path / "out", "--steps", 3)


def test_train_on_any_number_of_channels_and_16_bits(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", RNG.integers(0, 65536, (4, 5, 8, 12)).astype(np.uint16))
    train(tmp_path / "out", tmp_path / "a.npy", "--layout", "NCHW", "--set", "data.storage=disk")
    works("sample", tmp_path / "out", "--num", 2, "--steps", 2, "--out", tmp_path / "x.npy")
    assert np.load(tmp_path / "x.npy").shape == (2, 5, 8, 12)


def test_train_keeps_decoded_pictures_with_the_run(tmp_path: Path) -> None:
    pictures(tmp_path / "a", 8, 8)
    train(tmp_path / "out", tmp_path / "a", "--set", "data.cache=true")
    assert len(list((tmp_path / "out/cache").glob("images-*"))) == 1
    # What lies in the cache is what would lie in memory.
    assert "3 in all" in train(tmp_path / "out", tmp_path / "a", steps=3)


def test_train_names_what_to_give_for_a_damaged_picture(tmp_path: Path) -> None:
    (pictures(tmp_path / "a", 30, 30) / "2.png").write_text("damaged")
    data = ["train", "--data", tmp_path / "a", "--out", tmp_path / "out", "--steps", 2, *TINY]
    said = fails(*data, "--set", "data.workers=2", "--size", 8)
    assert "2.png: not an image" in said
    assert "--set data.skip_corrupt=True" in said
    assert "saved to" in said
    assert "2 in all" in works(*data, "--set", "data.skip_corrupt=True", "--size", 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--size", "8x"], "--size takes a side or HEIGHTxWIDTH"),
        (["--size", "8x8x8"], "--size takes a side"),
        (["--set", "data.size=[8]"], "size must be a side or"),
        (["--set", "data.storage=tape"], "--set data.storage=tape: storage must be 'memory' or 'disk'"),
        (["--set", "data.crop=random"], "a random crop needs"),
        (["--set", "data.worker=2"], "did you mean 'workers'"),
        (["--set", "data.levels=17"], "pictures have 256 or 65536 levels"),
        (["--set", "data.columns={image: img}"], "a folder of images takes no columns"),
    ],
    ids=str,
)
def test_train_says_what_is_wrong_with_options_of_the_data(tmp_path: Path, options: list[str], message: str) -> None:
    pictures(tmp_path / "a", 8, 8)
    assert message in fails("train", "--data", tmp_path / "a", "--out", tmp_path / "out", "--steps", 2, *TINY, *options)
