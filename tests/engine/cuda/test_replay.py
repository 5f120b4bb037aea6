"""Rows launched one by one from Python: in order, few ahead of the device, and none once something is raised."""

import pytest
import torch

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import CONTROL_WIDTH, NONFINITE, NUM_ROWS, ROW, SEED
from fastdiff.engine.cuda.replay import AHEAD, ReplayLoop


class Device:
    """A queue of what was launched, which ends when it is asked often enough."""

    def __init__(self, patience=0):
        self.control = torch.full((CONTROL_WIDTH,), -7)
        self.done, self.open, self.most, self.patience = [], 0, 0, patience

    def recording(self, name):
        device = self

        class Recording:
            def replay(self):
                device.done.append((name, int(device.control[ROW])))

        return Recording()

    def mark(self):
        device, asked = self, 0
        self.open += 1
        self.most = max(self.most, self.open)

        class Marker:
            def query(self):
                nonlocal asked
                asked += 1
                if asked == device.patience + 1:
                    device.open -= 1
                return asked > device.patience

        return Marker()

    def loop(self):
        return ReplayLoop(self.recording("network"), self.recording("step"), self.control, self.mark)


def test_rows_run_in_order_with_the_network_where_they_evaluate_it():
    device, told = Device(), []
    loop = device.loop()
    loop.launch(range(2, 5), num_rows=9, seed=2**64 - 1, stream=0, evaluates=[True, False, True])
    assert [int(device.control[word]) for word in (ROW, NUM_ROWS, SEED)] == [2, 9, -1]
    assert loop.wait(told.append) == Progress(5, None)
    assert device.done == [("network", 2), ("step", 2), ("step", 3), ("network", 4), ("step", 4)]
    assert told[-1] == Progress(5, None)


def test_few_rows_are_queued_ahead_of_the_device():
    device = Device(patience=3)
    loop = device.loop()
    loop.launch(range(40), num_rows=40, seed=0, stream=0, evaluates=[True] * 40)
    assert loop.wait(None) == Progress(40, None)
    assert device.most == AHEAD
    assert device.open == 0


def test_value_that_is_not_finite_is_told():
    device = Device()
    loop = device.loop()
    loop.launch(range(3), num_rows=3, seed=0, stream=0, evaluates=[True] * 3)
    device.control[NONFINITE] = 1
    assert loop.wait(None) == Progress(3, 1)


def test_no_more_rows_are_launched_once_something_is_raised():
    device = Device(patience=2)
    loop = device.loop()
    loop.launch(range(40), num_rows=40, seed=0, stream=0, evaluates=[False] * 40)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loop.wait(interrupt)
    assert len(device.done) <= 2 * AHEAD
    assert device.open == 0
