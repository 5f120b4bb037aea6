"""Labels by number and by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastdiff.sampling.labels import Classes

CPU = torch.device("cpu")
NAMED = Classes(3, ("cat", "dog"))


@pytest.mark.parametrize(
    "labels",
    [torch.tensor([1, 0]), [1, 0], (np.int64(1), 0), np.array([1, 0]), ["dog", "cat"], ["dog", 0], ["1", "0"]],
    ids=["tensor", "list", "tuple", "array", "names", "mixed", "digits"],
)
def test_labels_are_taken_as_numbers_and_by_name(labels: list[int]) -> None:
    found = NAMED.checked(labels, 2, CPU)
    assert found is not None
    assert found.dtype == torch.int64
    assert found.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("classes", "labels", "expected"),
    [
        (NAMED, None, "the network has 3 classes: give labels, one per image"),
        (Classes(None), [0, 1], "the network has no classes: leave labels out"),
        (NAMED, [0, 3], r"labels must be in 0\.\.2, got 3"),
        (NAMED, [0, -1], r"labels must be in 0\.\.2, got -1"),
        (NAMED, torch.tensor([0, 3]), r"labels must be in 0\.\.2, got 0\.\.3"),
        (NAMED, [0], r"labels must be int64 \[2\], got torch.int64 \[1\]"),
        (NAMED, torch.zeros(2), r"labels must be int64 \[2\], got torch.float32 \[2\]"),
        (NAMED, [0, 1.5], "whole numbers in 0..2 or names, got 1.5"),
        (NAMED, [True, False], "whole numbers in 0..2 or names, got True"),
        (NAMED, ["cat", "dgo"], "no class is called 'dgo': did you mean 'dog'"),
        (Classes(3), ["cat", "dog"], "this model knows no names of classes, got 'cat'"),
        (NAMED, "cat", "labels must be 2 numbers or names, one per image, got 'cat'"),
        (NAMED, 1, "labels must be 2 numbers or names, one per image, got 1"),
    ],
)
def test_labels_that_do_not_fit_are_named(classes: Classes, labels: list[int], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        classes.checked(labels, 2, CPU)


def test_the_null_class_is_the_one_beyond_the_names() -> None:
    assert (NAMED.null, NAMED.num_real, NAMED.null_of(None)) == (2, 2, 2)
    assert (Classes(2, ("cat", "dog")).null, Classes(2, ("cat", "dog")).num_real) == (None, 2)
    assert (Classes(3).null, Classes(3).null_of(0)) == (None, 0)
    assert NAMED.null_of("dog") == 1
    with pytest.raises(ValueError, match="does not say which of its 3 classes is the null one"):
        Classes(3).null_of(None)
    with pytest.raises(
        ValueError, match="the 2 classes of this network are those of its data, and none is a null class"
    ):
        Classes(2, ("cat", "dog")).null_of(None)
    with pytest.raises(ValueError, match="guidance needs a network with classes"):
        Classes(None).null_of(None)
    assert [NAMED.name(i) for i in range(3)] == ["cat", "dog", "2"]
