"""The loop graph on a GPU: captured rows in a WHILE node, what stops them, what they tell."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

import fastdiff as fd
from fastdiff.engine.cuda.graph import LoopGraph, Progress
from fastdiff.engine.cuda.library import CONTROL_WIDTH, NONFINITE, ROW, RefusedGraph, default_library
from fastdiff.ops.table_state import TableState
from support.networks import random_unet, two_levels
from support.tolerances import FLOAT32_RUN

pytestmark = pytest.mark.gpu
SHAPE = (3, 1, 8, 8)
MODES = ["while", "replay", "unrolled"]


@pytest.fixture
def control(cuda):
    return torch.zeros(CONTROL_WIDTH, dtype=torch.int64, device=cuda)


def captured(function):
    """A graph of what a function without arguments launches, and the graph's address."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
        function()
    return graph, graph.raw_cuda_graph()


class Work:
    """A small float32 network and the rows of a table, both reading the row from the control block."""

    def __init__(self, table, control):
        self.table, self.control = table, control
        device = control.device
        self.x = torch.empty(SHAPE, device=device).contiguous(memory_format=torch.channels_last)
        self.state = TableState(table)
        self.state.make_room(self.x)
        self.rows, times = self.state.rows(self.x), self.state.times(device)
        self.unet = random_unet(two_levels()).to(device)
        self.output = torch.empty_like(self.x)
        at = control[ROW : ROW + 1]
        scales = torch.tensor(table["ci"], dtype=torch.float32, device=device)

        def network():
            t = times.index_select(0, at).expand(SHAPE[0])
            self.output.copy_(self.unet(self.x * scales.index_select(0, at), t))

        def step():
            self.state.step(at.expand(SHAPE[0]).contiguous(), self.x, self.output, seed=7, out=self.x)

        with torch.no_grad():
            self.network, self.step = captured(network), captured(step)

    def loop(self, mode):
        evaluates = [bool(value) for value in self.table["evaluate"]]
        loop = LoopGraph(
            self.step[1],
            network=self.network[1],
            control=self.control.data_ptr(),
            rows=self.rows.data_ptr(),
            mode=mode,
            unroll=range(len(self.table)) if mode == "unrolled" else None,
            evaluates=evaluates if mode == "unrolled" else None,
            stream=torch.cuda.current_stream().cuda_stream,
            owners=[self.network, self.step],
        )
        return loop, evaluates if mode == "replay" else None

    def eager(self, x):
        """The same rows one by one; with the device's own network, since convolutions may run in TensorFloat-32."""
        state = TableState(self.table)
        for row in range(len(self.table)):
            with torch.no_grad():
                output = self.unet(*state.network_input(row, x)) if state.evaluates[row] else None
                x, _ = state.step(row, x, output, seed=7)
        return x


def first_state(device):
    x = torch.randn(SHAPE, generator=torch.Generator().manual_seed(1)).to(device)
    return x.contiguous(memory_format=torch.channels_last)


def test_driver_has_loops(cuda):
    versions = default_library().versions()
    assert versions.driver >= versions.runtime >= (12, 4)
    assert versions.has_loops


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpmpp_3m", "repaint"])
def test_loop_of_a_captured_network_equals_eager(cuda, control, sampler, mode):
    options = {"jump_length": 2, "jump_repeats": 2} if sampler == "repaint" else {}
    table = fd.samplers.build(sampler, fd.Diffusion(fd.NoiseSchedule.cosine(100), prediction="v"), 8, **options)
    work = Work(table, control)
    loop, flags = work.loop(mode)
    expected = work.eager(first_state(cuda))
    with loop:
        for _ in range(2):
            work.x.copy_(first_state(cuda))
            stream = torch.cuda.current_stream().cuda_stream
            loop.launch(range(len(table)), num_rows=len(table), seed=7, stream=stream, evaluates=flags)
            assert loop.wait() == Progress(len(table), None)
            assert (work.x - expected).abs().max() < FLOAT32_RUN * max(1.0, float(expected.abs().max()))


def sleeping(control, cycles=200_000):
    """A loop whose rows take about 0.1 ms."""
    graph, address = captured(lambda: torch.cuda._sleep(cycles))
    return LoopGraph(address, control=control.data_ptr(), owners=[graph])


def test_progress_and_stop_while_the_gpu_runs(cuda, control):
    with sleeping(control) as loop:
        loop.launch(range(10**6), num_rows=10**6, stream=torch.cuda.current_stream().cuda_stream)
        time.sleep(0.2)
        first = loop.progress().next
        time.sleep(0.2)
        second = loop.progress().next
        assert 0 < first < second < 10**6
        assert not loop.is_done()
        loop.request_stop()
        ended = loop.wait()
        assert second <= ended.next < 10**6
        torch.cuda.synchronize()
        assert int(control[ROW]) == ended.next
        assert loop.progress() == ended
        loop.request_stop(False)
        loop.launch(range(ended.next, ended.next + 5), num_rows=10**6)
        assert loop.wait() == Progress(ended.next + 5, None)


def test_ctrl_c_ends_the_loop(cuda, control):
    with sleeping(control) as loop:
        threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
        loop.launch(range(10**6), num_rows=10**6)
        with pytest.raises(KeyboardInterrupt):
            loop.wait()
        assert loop.is_done()
        assert 0 < loop.progress().next < 10**6


def test_close_ends_a_loop_that_runs(cuda, control):
    loop = sleeping(control)
    loop.launch(range(10**6), num_rows=10**6)
    loop.close()
    torch.cuda.synchronize()
    assert int(control[ROW]) < 10**6


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_loop_ends_behind_a_row_that_is_not_finite(cuda, control, mode):
    row, bad = control[ROW : ROW + 1], control[NONFINITE : NONFINITE + 1]
    graph, address = captured(lambda: bad.copy_(torch.where(row == 5, row, bad)))
    with LoopGraph(address, control=control.data_ptr(), mode=mode, owners=[graph]) as loop:
        loop.launch(range(1000), num_rows=1000)
        found = loop.wait()
        assert found.nonfinite == 5
        assert found.next == 6 or mode == "replay"


def test_a_captured_record_of_an_external_event_is_refused(cuda, control):
    event = torch.cuda.Event(external=True)

    def row():
        control[ROW].add_(0)
        if torch.cuda.is_current_stream_capturing():
            event.record()

    graph, address = captured(row)
    with pytest.raises(RefusedGraph, match=r"the step's graph, node \d of \d is a record of an external event"):
        LoopGraph(address, control=control.data_ptr(), owners=[graph])


def test_the_current_device_stays(cuda, control):
    before = torch.cuda.current_device()
    with sleeping(control) as loop:
        loop.launch(range(3), num_rows=3)
        loop.wait()
    assert torch.cuda.current_device() == before
    assert torch.ones(2, device=cuda).sum() == 2


SHORT_RUN = """
import torch
from fastdiff.engine.cuda.graph import LoopGraph
control, x = torch.zeros(16, dtype=torch.int64, device="cuda"), torch.zeros(1000, device="cuda")
evaluates = torch.zeros(4, 32, device="cuda")
evaluates[::2] = 1
def captured(function):
    function()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph(keep_graph=True)
    with torch.cuda.graph(graph):
        function()
    return graph
network, step = captured(lambda: x.add_(1)), captured(lambda: x.add_(10))
x.zero_()
options = {"network": network.raw_cuda_graph(), "control": control.data_ptr(), "rows": evaluates.data_ptr()}
torch.cuda.synchronize()
with LoopGraph(step.raw_cuda_graph(), owners=[network, step], **options) as loop:
    loop.launch(range(4), num_rows=4)
    loop.wait()
print(x.unique().tolist())
"""


@pytest.mark.slow
def test_compute_sanitizer_finds_nothing_in_a_short_run(cuda):
    tool = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")
    if tool is None:
        pytest.skip("compute-sanitizer is not installed; a skip here is not a pass")
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", SHORT_RUN]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=240, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    assert "[42.0]" in done.stdout
    assert "ERROR SUMMARY: 0 errors" in done.stdout + done.stderr
