"""fastdiff.files.data: the three sources and their errors, the order of the data."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.files.data import (
    DataScaling,
    ImageData,
    batch_indices,
    digits,
    flip_mask,
    load,
)
from support.pictures import RNG, picture, save


def image_data(num_images: int = 6) -> ImageData:
    images = torch.arange(num_images * 3 * 2 * 4, dtype=torch.uint8).reshape(num_images, 3, 2, 4)
    return ImageData(images, torch.arange(num_images) % 2, DataScaling(256), "made up", ("even", "odd"))


def test_data_image_data_reports_length_and_shape() -> None:
    data = image_data()
    assert len(data) == 6
    assert data.shape == (3, 2, 4)
    assert "6 images of 3x2x4" in repr(data)
    assert data.to_model(data.images).dtype == torch.float32


@pytest.mark.parametrize(
    "indices", [[5, 0, 0], (5, 0, 0), np.array([5, 0, 0]), torch.tensor([5, 0, 0], dtype=torch.int32)], ids=type
)
def test_data_take_keeps_order_repeats_and_labels(indices: object) -> None:
    data = image_data()
    taken = data.take(indices)  # type: ignore[arg-type]
    assert torch.equal(taken.images, torch.stack([data.images[5], data.images[0], data.images[0]]))
    assert taken.labels is not None
    assert taken.labels.tolist() == [1, 0, 0]
    assert (taken.scaling, taken.source, taken.label_names) == (data.scaling, data.source, data.label_names)


def test_data_take_nothing_gives_no_images() -> None:
    assert len(image_data().take([])) == 0


def test_data_take_accepts_batch_indices() -> None:
    data = image_data()
    assert data.take(batch_indices(len(data), 4, 3, 0)).images.shape == (4, 3, 2, 4)


@pytest.mark.parametrize(
    ("indices", "error"),
    [([6], IndexError), ([-1], IndexError), ([0.0], TypeError), ([True] * 6, TypeError), ([[0]], ValueError)],
    ids=str,
)
def test_data_take_refuses_bad_indices(indices: object, error: type[Exception]) -> None:
    with pytest.raises(error, match="indices"):
        image_data().take(indices)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "labels", "levels", "error"),
    [
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.float64), None, None, TypeError),
        (torch.zeros(2, 3, 8, 8), None, 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, None, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), None, 1000, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), 256, ValueError),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2), 256, TypeError),
    ],
    ids=["three-dims", "float64", "float-levels", "uint8-continuous", "uint8-1000", "three-labels", "float-labels"],
)
def test_data_image_data_refuses_inconsistent_parts(
    images: torch.Tensor, labels: torch.Tensor | None, levels: int | None, error: type[Exception]
) -> None:
    with pytest.raises(error):
        ImageData(images, labels, DataScaling(levels), "made up")


def test_data_digits_have_the_known_counts() -> None:
    data, train, test = digits("all"), digits("train"), digits("test")
    assert [len(data), len(train), len(test)] == [1797, 1437, 360]
    assert data.shape == (1, 8, 8)
    assert data.scaling == DataScaling(17)
    assert data.images.dtype == torch.uint8
    assert (int(data.images.min()), int(data.images.max())) == (0, 16)
    assert data.labels is not None
    assert data.labels[:10].tolist() == list(range(10))
    assert torch.bincount(data.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_data_digits_split_follows_the_written_rule() -> None:
    data, train, test = digits("all"), digits(), digits("test")
    assert data.labels is not None
    by_class = [index for label in range(10) for index in range(1797) if data.labels[index] == label]
    held_out = sorted(by_class[::5])
    assert torch.equal(test.images, data.images[held_out])
    kept = sorted(set(range(1797)) - set(held_out))
    assert torch.equal(train.images, data.images[kept])
    assert train.labels is not None
    assert torch.equal(train.labels, data.labels[kept])


def test_data_digits_split_is_balanced() -> None:
    data, test = digits("all"), digits("test")
    assert data.labels is not None
    assert test.labels is not None
    expected = torch.bincount(data.labels) / 5
    assert float((torch.bincount(test.labels) - expected).abs().max()) < 1


def test_data_digits_reach_both_ends_of_the_model_range() -> None:
    data = digits("test")
    x = data.to_model(data.images)
    assert (float(x.min()), float(x.max())) == (-1.0, 1.0)
    assert torch.equal(data.scaling.to_values(x), data.images)


def test_data_digits_refuse_an_unknown_split() -> None:
    with pytest.raises(ValueError, match="'train', 'test' or 'all', got 'val'"):
        digits("val")  # type: ignore[arg-type]


def test_data_digits_without_sklearn_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(RuntimeError, match=re.escape('pip install "fastdiff-ddpm[demo]"')):
        digits()


def save_array(path: Path, array: np.ndarray) -> Path:
    np.save(path, array)
    return path


NHWC = RNG.integers(0, 256, (5, 8, 6, 3), dtype=np.uint8)


def test_data_load_finds_the_source(tmp_path: Path) -> None:
    assert load("digits").source == "digits/train"
    assert load("digits", split="test").source == "digits/test"
    save(tmp_path / "folder/a.png", picture(9, 9))
    assert load(tmp_path / "folder", size=4, channels=1).shape == (1, 4, 4)
    path = save_array(tmp_path / "a.npy", NHWC)
    assert load(str(path), layout="NHWC").shape == (3, 8, 6)
    np.savez(tmp_path / "b.npz", NHWC)
    assert len(load(tmp_path / "b.npz", labels=save_array(tmp_path / "l.npy", np.arange(5)))) == 5


def test_data_load_prefers_the_digits_to_a_folder_of_that_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "digits/a.png", picture(9, 9))
    monkeypatch.chdir(tmp_path)
    assert load("digits").shape == (1, 8, 8)
    assert load("./digits").shape == (3, 9, 9)


def test_data_load_lists_what_it_accepts(tmp_path: Path) -> None:
    accepted = "'digits', a folder of images, or a .npz or .npy file"
    save(tmp_path / "a.png", picture(9, 9))
    with pytest.raises(ValueError, match=re.escape(accepted) + r".*a\.png' is not one of them"):
        load(tmp_path / "a.png")
    with pytest.raises(ValueError, match=re.escape(accepted) + r".*'cifar10' does not exist"):
        load("cifar10")
    with pytest.raises(ValueError, match=re.escape(accepted)):
        load("")


@pytest.mark.parametrize(
    ("source", "options"),
    [("digits", {"size": 8}), ("folder", {"split": "test"}), ("a.npy", {"channels": 3}), ("a.npy", {"size": 8})],
    ids=str,
)
def test_data_load_refuses_options_of_another_source(tmp_path: Path, source: str, options: dict[str, object]) -> None:
    (tmp_path / "folder").mkdir()
    save_array(tmp_path / "a.npy", NHWC)
    with pytest.raises(ValueError, match=f"takes no {next(iter(options))} "):
        load(source if source == "digits" else tmp_path / source, **options)  # type: ignore[arg-type]


@settings(deadline=None, max_examples=60)
@given(
    num_images=st.integers(1, 40),
    batch_size=st.integers(1, 100),
    seed=st.integers(-(2**70), 2**70),
    num_epochs=st.integers(1, 5),
)
def test_data_batches_visit_every_image_once_per_epoch(
    num_images: int, batch_size: int, seed: int, num_epochs: int
) -> None:
    num_steps = -(-num_images * num_epochs // batch_size)
    batches = [batch_indices(num_images, batch_size, step, seed) for step in range(num_steps)]
    assert all(batch.shape == (batch_size,) and batch.dtype == np.int64 for batch in batches)
    epochs = np.concatenate(batches)[: num_images * num_epochs].reshape(num_epochs, num_images)
    assert np.array_equal(np.sort(epochs, axis=1), np.tile(np.arange(num_images), (num_epochs, 1)))


def test_data_batches_do_not_depend_on_the_order_of_calls() -> None:
    steps = list(range(60))
    forward = {step: batch_indices(37, 10, step, 5).copy() for step in steps}
    for step in np.random.default_rng(0).permutation(steps).tolist() + steps[::-1]:
        assert np.array_equal(batch_indices(37, 10, step, 5), forward[step])


def test_data_batches_do_not_depend_on_the_batch_size() -> None:
    whole = batch_indices(37, 120, 0, 5)
    assert np.array_equal(np.concatenate([batch_indices(37, 8, step, 5) for step in range(15)]), whole)


def test_data_batches_differ_between_seeds_and_epochs() -> None:
    epochs = [tuple(batch_indices(100, 100, epoch, seed)) for epoch in range(5) for seed in (0, 1, 2**32, 2**63)]
    assert len(set(epochs)) == len(epochs)


def test_data_batches_take_seeds_modulo_two_to_the_64() -> None:
    assert np.array_equal(batch_indices(50, 50, 0, -1), batch_indices(50, 50, 0, 2**64 - 1))
    assert np.array_equal(batch_indices(50, 50, np.int64(3), np.int32(7)), batch_indices(50, 50, 3, 7))  # type: ignore[arg-type]


def test_data_batches_are_pinned() -> None:
    # A change here, be it ours or NumPy's, breaks the resumption of everyone's runs: it wants a major version.
    assert batch_indices(10, 10, 0, 0).tolist() == [4, 3, 7, 1, 5, 6, 2, 0, 9, 8]
    assert batch_indices(10, 10, 1, 0).tolist() == [9, 2, 8, 7, 3, 6, 4, 5, 0, 1]


def test_data_batches_can_be_changed_by_the_caller() -> None:
    batch = batch_indices(8, 8, 0, 0)
    expected = batch.copy()
    batch[:] = 0
    assert np.array_equal(batch_indices(8, 8, 0, 0), expected)


def test_data_batches_of_late_steps_are_cheap() -> None:
    assert sorted(batch_indices(8, 8, 10**15, 0).tolist()) == list(range(8))


@pytest.mark.parametrize("bad", [{"num_images": 0}, {"batch_size": 0}, {"step": -1}], ids=str)
def test_data_batches_refuse_bad_arguments(bad: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} must be .*, got {next(iter(bad.values()))}"):
        batch_indices(**{"num_images": 8, "batch_size": 4, "step": 0, "seed": 0, **bad})


def test_data_flips_are_pinned_to_seed_step_and_position() -> None:
    mask = flip_mask(64, 7, 3)
    assert mask.shape == (64,)
    assert mask.dtype == np.bool_
    assert np.array_equal(flip_mask(64, 7, 3), mask)
    assert np.array_equal(flip_mask(13, 7, 3), mask[:13])
    assert not np.array_equal(flip_mask(64, 8, 3), mask)
    assert not np.array_equal(flip_mask(64, 7, 4), mask)
    assert flip_mask(0, 7, 3).shape == (0,)
    assert np.flatnonzero(flip_mask(16, 0, 0)).tolist() == [1, 5, 7, 13, 14, 15]


def test_data_flips_are_fair_and_independent() -> None:
    masks = np.stack([flip_mask(100, step, 0) for step in range(400)]).astype(np.float64)
    # 40,000 fair coins: five standard deviations are 0.0125; of 400 or 100 alone 0.125 and 0.25.
    assert abs(masks.mean() - 0.5) < 0.0125
    assert np.abs(masks.mean(axis=0) - 0.5).max() < 0.125
    assert np.abs(masks.mean(axis=1) - 0.5).max() < 0.25
    # Neighbours in a batch, and one position in successive steps, agree half the time.
    assert abs((masks[:, 1:] == masks[:, :-1]).mean() - 0.5) < 0.0125
    assert abs((masks[1:] == masks[:-1]).mean() - 0.5) < 0.0125


@pytest.mark.parametrize(("batch_size", "step"), [(-1, 0), (4, -1), (4, 2**62)], ids=str)
def test_data_flips_refuse_bad_arguments(batch_size: int, step: int) -> None:
    with pytest.raises(ValueError, match="batch_size" if batch_size < 0 else "step"):
        flip_mask(batch_size, step, 0)
