"""Settings with a number for each timestep: names, arrays, files, and what is refused of them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff.training.per_timestep import array_of, name_or_numbers

KNOWN = ("none", "min_snr")


def read(value):
    return name_or_numbers("weighting", value, KNOWN)


def test_names_and_numbers_are_taken(tmp_path):
    path = tmp_path / "weights.npy"
    np.save(path, np.array([0, 1, 2.5], dtype=np.float32))
    assert read("min_snr") == "min_snr"
    for value in ([0, 1, 2.5], (0.0, 1.0, 2.5), np.array([0, 1, 2.5]), torch.tensor([0, 1, 2.5]), path, str(path)):
        assert read(value) == (0.0, 1.0, 2.5)
    np.testing.assert_array_equal(array_of("weighting", read(path), 3), [0, 1, 2.5])


CASES = {
    "min_snrr": r"unknown weighting 'min_snrr': did you mean 'min_snr'\? known: min_snr, none; or a \.npy file of numb",
    3.0: r"weighting must be a name or a list of numbers, one for each timestep, got 3\.0",
    (): r"must be a name or a list of numbers, one for each timestep, got shape \[0\]",
    ((1.0, 2.0), (3.0, 4.0)): r"got shape \[2, 2\]",
    (1.0, -2.0): r"must be finite and at least 0, got -2\.0 at t = 1",
    (1.0, float("nan")): r"must be finite and at least 0, got nan at t = 1",
    (float("inf"), 1.0): r"got inf at t = 0",
    (1.0, "2"): r"got '2' at t = 1",
    (0.0, 0.0): r"must be above 0 for a timestep at least, got only zeros",
    "there_is_none.npy": r"weighting there_is_none\.npy: no such file",
}


@pytest.mark.parametrize("value", CASES, ids=str)
def test_other_values_are_refused(value):
    with pytest.raises(ValueError, match=CASES[value]):
        read(value)


def test_files_are_named_in_errors(tmp_path: Path):
    path = tmp_path / "weights.npy"
    np.save(path, np.array([1.0, np.nan]))
    with pytest.raises(ValueError, match=r"got nan at t = 1 in .*weights\.npy"):
        read(path)
    np.save(path, np.array([1.0, {}], dtype=object))
    with pytest.raises(ValueError, match=r"weighting .*weights\.npy: holds pickled Python objects"):
        read(path)
    path.write_text("1 2 3")
    with pytest.raises(ValueError, match=r"weighting .*not a NumPy"):
        read(path)


def test_length_is_that_of_the_process():
    with pytest.raises(ValueError, match="weighting must have a number for each of the 4 timesteps, got 3"):
        array_of("weighting", (1.0, 2.0, 3.0), 4)
