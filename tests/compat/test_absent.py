"""Names that are not here: the import says what to do, and others are missing as usual."""

import importlib

import pytest

from fastdiff.compat.absent import explained


def test_the_import_says_what_to_take():
    look_up = explained("some.module", {"Thing": "take Other"})
    with pytest.raises(ImportError, match=r"some\.module has no Thing: take Other"):
        look_up("Thing")
    with pytest.raises(AttributeError, match=r"module 'some\.module' has no attribute 'x'"):
        look_up("x")


@pytest.mark.parametrize(
    ("module", "name", "said"),
    [
        ("nn", "CheckpointFunction", "call checkpoint"),
        ("dist_util", "MPI", "torchrun"),
        ("logger", "TensorBoardOutputFormat", "configure, log and logkv"),
    ],
)
def test_modules_of_guided_diffusion_explain_what_they_lack(module, name, said):
    with pytest.raises(ImportError, match=said):
        getattr(importlib.import_module(f"fastdiff.compat.guided_diffusion.{module}"), name)
