"""A GPU as what records rows and loops over them."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from fastdiff.engine.cuda.capture import CudaRecorder, CudaRecording
from fastdiff.engine.cuda.graph import LoopGraph, Mode
from fastdiff.engine.cuda.library import default_library
from fastdiff.engine.cuda.loop import GraphDevice, Loop
from fastdiff.engine.cuda.replay import ReplayLoop

__all__ = ["graph_device"]


class Gpu:
    """Records on a CUDA device, and loops with csrc/cuda where it is built, else from Python.

    Args:
        device: The device, with its number.
        mode: How csrc/cuda loops; the driver's best when None.
    """

    def __init__(self, device: torch.device, mode: Mode | None = None) -> None:
        self._device = device
        self._mode: Mode | None = None
        try:
            found = default_library().versions(device.index or 0)
        except RuntimeError as error:
            # Not built, or built with a CUDA that this driver is too old for.
            warnings.warn(f"rows are launched from Python, one by one: {error}", RuntimeWarning, stacklevel=3)
        else:
            self._mode = mode or ("while" if found.has_loops else "replay")

    def recorder(self) -> CudaRecorder:
        """See `GraphDevice`."""
        return CudaRecorder(self._device)

    def loop(
        self,
        network: CudaRecording,
        step: CudaRecording,
        rows: Tensor,
        control: Tensor,
        recorder: CudaRecorder,
        every_row: bool,
    ) -> Loop:
        """See `GraphDevice`."""
        if self._mode is None:
            return ReplayLoop(network, step, control, lambda: torch.cuda.current_stream().record_event())
        return LoopGraph(
            step.graph,
            network=network.graph,
            control=control.data_ptr(),
            rows=rows.data_ptr(),
            every_row=every_row,
            mode=self._mode,
            device=self._device.index or 0,
            stream=recorder.stream,
            owners=(network, step, rows, control),
        )


@functools.cache
def graph_device(device: torch.device) -> GraphDevice:
    """What records and runs on a CUDA device.

    Raises:
        CudaError: the device cannot be used.
    """
    return Gpu(device)  # type: ignore[return-value]
