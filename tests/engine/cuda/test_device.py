"""A GPU as a device: which loop it takes, and what a machine without one says."""

import pytest
import torch

from fastdiff.engine.cuda import device as module
from fastdiff.engine.cuda.device import Gpu
from fastdiff.engine.cuda.library import Versions
from fastdiff.engine.cuda.replay import ReplayLoop

CUDA = torch.device("cuda", 0)


class Library:
    def __init__(self, driver):
        self.driver = driver

    def versions(self, device):
        return Versions(self.driver, (13, 0))


class Recording:
    graph = 7


class Recorder:
    stream = 11


@pytest.fixture
def built(monkeypatch):
    """What a loop was built from."""
    made = []
    monkeypatch.setattr(module, "LoopGraph", lambda step, **options: made.append((step, options)) or "a loop")
    return made


@pytest.mark.parametrize(("driver", "mode"), [((12, 4), "while"), ((13, 1), "while"), ((12, 3), "replay")])
def test_driver_says_whether_rows_are_one_launch(monkeypatch, built, driver, mode):
    monkeypatch.setattr(module, "default_library", lambda: Library(driver))
    rows, control = torch.zeros(3, 32), torch.zeros(16, dtype=torch.int64)
    assert Gpu(CUDA).loop(Recording(), Recording(), rows, control, Recorder(), every_row=True) == "a loop"
    ((step, options),) = built
    assert step == options["network"] == 7
    assert (options["mode"], options["stream"], options["every_row"], options["device"]) == (mode, 11, True, 0)
    assert (options["control"], options["rows"]) == (control.data_ptr(), rows.data_ptr())
    assert rows in options["owners"] or any(owner is rows for owner in options["owners"])


def test_rows_are_launched_from_python_where_the_library_is_not_built(monkeypatch):
    def missing():
        raise RuntimeError("the CUDA loop is not built")

    monkeypatch.setattr(module, "default_library", missing)
    with pytest.warns(RuntimeWarning, match="one by one: the CUDA loop is not built"):
        gpu = Gpu(CUDA)
    made = gpu.loop(Recording(), Recording(), torch.zeros(3, 32), torch.zeros(16, dtype=torch.int64), Recorder(), True)
    assert isinstance(made, ReplayLoop)
