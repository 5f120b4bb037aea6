"""A device for recorded rows that is the CPU: a recording is the function itself, called anew for each row.

The launches are then Triton's, under its interpreter, and PyTorch's on CPU tensors.
"""

import contextlib

import torch

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


class FakeGpu(HostDevice):
    """csrc/cuda's loop over a CUDA runtime without a GPU: the launches are host functions of its graphs' nodes."""

    def __init__(self, runtime, mode):
        super().__init__()
        self.runtime, self.mode, self.loops = runtime, mode, []

    def recorder(self):
        made = super().recorder()
        record = made.record

        def captured(run, model=None):
            recording = record(run, model)
            recording.graph = self.runtime.capture(torch.no_grad()(run))
            return recording

        made.record = captured
        return made

    def loop(self, network, step, rows, control, recorder, every_row):
        made = self.runtime.loop(
            step.graph,
            network=network.graph,
            control=control.data_ptr(),
            rows=rows.data_ptr(),
            every_row=every_row,
            mode=self.mode,
            owners=[network, step, rows, control],
        )
        self.loops.append(made)
        return made

    def close(self):
        """The fake's kernels keep what they call, and so the loops, alive."""
        for loop in self.loops:
            loop.close()
