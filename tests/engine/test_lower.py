"""Lowering: what is no network of ours is told apart."""

import pytest
from torch import nn

import fastdiff as fd
from fastdiff.engine import Unsupported


def test_compile_points_to_the_converter():
    with pytest.raises(Unsupported, match=r"got Linear; fastdiff\.convert\.to_unet"):
        fd.compile(nn.Linear(2, 2))
