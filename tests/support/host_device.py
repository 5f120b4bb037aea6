"""A device for recorded rows that is the CPU: a recording is the function itself, called anew for each row.

The launches are then Triton's, under its interpreter, and PyTorch's on CPU tensors.
"""

import contextlib

from fastdiff.engine.cuda.replay import ReplayLoop


class HostRecording:
    graph = 0

    def __init__(self, run):
        self.replay = run


class HostRecorder:
    stream = 0

    def __init__(self):
        self.recorded = 0

    def record(self, run, model=None):
        run()
        self.recorded += 1
        return HostRecording(run)

    def ordered(self):
        return contextlib.nullcontext()


class Done:
    def query(self):
        return True


class HostDevice:
    """Counts what is recorded."""

    def __init__(self):
        self.recorders = []

    def recorder(self):
        self.recorders.append(HostRecorder())
        return self.recorders[-1]

    def loop(self, network, step, rows, control, recorder, every_row):
        return ReplayLoop(network, step, control, Done)
