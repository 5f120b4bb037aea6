"""The loop graph over a CUDA runtime without a GPU: which rows run, how they stop, who owns what."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import weakref

import hypothesis
import hypothesis.strategies as st
import pytest

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import CONTROL_WIDTH, END, NONFINITE, NUM_ROWS, ROW, SEED, CudaError
from support import fake_cuda
from support.fake_cuda import Rows

MODES = ["while", "replay", "unrolled"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("threads", [0, 1], ids=["at once", "in a thread"])
@pytest.mark.parametrize("every_row", [False, True])
def test_loop_runs_its_rows_once_and_the_network_where_they_evaluate(runtime, mode, threads, every_row):
    runtime.set("threads", threads)
    evaluates = (1,) * 5 if every_row else (1, 1, 0, 1, 0)
    rows = Rows(runtime, evaluates, mode=mode, every_row=every_row)
    with rows.loop:
        assert rows.run(seed=2**64 - 1) == Progress(5, None)
    assert rows.steps == [0, 1, 2, 3, 4]
    assert rows.networks == [row for row in range(5) if evaluates[row]]
    expected = [-7] * CONTROL_WIDTH
    for row, control in enumerate(rows.seen):
        expected[ROW], expected[END], expected[NUM_ROWS], expected[SEED], expected[NONFINITE] = row, 5, 5, -1, -1
        assert control == expected


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_loop_runs_stretches(runtime, mode):
    rows = Rows(runtime, [1] * 100, mode=mode)
    with rows.loop:
        for stretch in (range(0, 1), range(1, 60), range(60, 60), range(60, 100)):
            assert rows.run(stretch) == Progress(stretch.stop, None)
            assert rows.steps == list(range(stretch.stop))
        assert rows.run(range(7, 9)) == Progress(9, None)
    assert rows.steps == [*range(100), 7, 8]
    assert rows.networks == rows.steps


@hypothesis.given(
    evaluates=st.lists(st.booleans(), min_size=1, max_size=70),
    cuts=st.sets(st.integers(0, 70), max_size=4),
    stop=st.integers(0, 70),
    mode=st.sampled_from(["while", "replay"]),
)
@hypothesis.settings(max_examples=40, suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture])
def test_every_row_runs_once_however_the_table_is_cut_and_stopped(runtime, evaluates, cuts, stop, mode):
    rows = Rows(runtime, evaluates, mode=mode, on_step=lambda row: rows.loop.request_stop() if row == stop else None)
    ends = sorted({cut for cut in cuts if cut < len(evaluates)} | {len(evaluates)})
    with rows.loop:
        done = 0
        while done < len(evaluates):
            end = next(end for end in ends if end > done)
            before, done = done, rows.run(range(done, end)).next
            assert done == end or (before <= stop < done if mode == "while" else done > stop)
            rows.loop.request_stop(False)
    assert rows.steps == list(range(len(evaluates)))
    assert rows.networks == [row for row, evaluated in enumerate(evaluates) if evaluated]


def test_loop_launches_all_rows_at_once(runtime):
    rows = Rows(runtime, [1] * 1000)
    with rows.loop:
        before = runtime.calls("cudaGraphLaunch")
        rows.run()
        assert runtime.calls("cudaGraphLaunch") == before + 1
    assert len(rows.steps) == 1000


def test_loop_without_a_network_of_its_own(runtime):
    control, steps = fake_cuda.control_block(), []
    step = runtime.capture(lambda: steps.append(int(control[ROW])))
    with runtime.loop(step, control=control.data_ptr()) as loop:
        loop.launch(range(2, 4), num_rows=4)
        assert loop.wait() == Progress(4, None)
    assert steps == [2, 3]


def test_unrolled_loop_runs_a_part_of_a_table(runtime):
    rows = Rows(runtime, mode="unrolled", unroll=range(1, 4))
    with rows.loop:
        assert rows.run(range(1, 4)) == Progress(4, None)
        with pytest.raises(ValueError, match=r"unrolled for rows \[1, 4\), got \[0, 3\)"):
            rows.launch(range(3))
    assert (rows.steps, rows.networks) == ([1, 2, 3], [1, 3])


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_loop_stops_between_rows_and_goes_on(runtime, mode):
    rows = Rows(runtime, [1] * 100, mode=mode, on_step=lambda row: rows.loop.request_stop() if row == 3 else None)
    with rows.loop:
        found = rows.run()
        # Replayed rows that the GPU has been given run.
        assert found == Progress(4, None) if mode == "while" else found.next < 50
        assert rows.steps == list(range(found.next))
        assert rows.run(range(found.next, 100)) == found, "it holds until it is taken back"
        rows.loop.request_stop(False)
        assert rows.run(range(found.next, 100)) == Progress(100, None)
    assert rows.steps == list(range(100))


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_loop_stops_behind_a_row_that_is_not_finite(runtime, mode):
    rows = Rows(runtime, [1] * 100, mode=mode)
    rows.on_step = lambda row: rows.control.__setitem__(NONFINITE, row) if row == 2 else None
    with rows.loop:
        found = rows.run()
        assert found.nonfinite == 2
        assert found.next == 3 or mode == "replay"
        assert rows.run(range(50, 60)) == Progress(60, None), "a launch begins afresh"


def test_two_loops_at_once(runtime):
    runtime.set("threads", 1)
    first, second = Rows(runtime, [1] * 4), Rows(runtime, [0] * 6)
    with first.loop, second.loop:
        first.launch(range(4))
        second.launch(range(6))
        assert second.loop.wait() == Progress(6, None)
        assert first.loop.wait() == Progress(4, None)
    assert (first.steps, second.steps) == (list(range(4)), list(range(6)))
    assert (first.networks, second.networks) == (list(range(4)), [])


def test_progress_is_seen_while_rows_run(runtime):
    runtime.set("threads", 1)
    reached, go_on = threading.Event(), threading.Event()

    def pause(row):
        if row == 2:
            reached.set()
            assert go_on.wait(30)

    rows = Rows(runtime, on_step=pause)
    told = []
    with rows.loop:
        rows.launch(range(5))
        assert reached.wait(30)
        assert rows.loop.progress() == Progress(2, None)
        assert not rows.loop.is_done()
        with pytest.raises(ValueError, match="still running"):
            rows.launch(range(5))
        calls = runtime.calls("cudaEventQuery")
        rows.loop.progress()
        assert runtime.calls("cudaEventQuery") == calls

        def advance(progress):
            told.append(progress.next)
            go_on.set()

        assert rows.loop.wait(advance) == Progress(5, None)
        assert rows.loop.is_done()
    assert told[0] == 2
    assert told[-1] == 5
    assert told == sorted(set(told))


def endless(runtime, mode="while"):
    """A loop whose rows take a while, of which there are many."""
    runtime.set("threads", 1)
    return Rows(runtime, [1] * 10**4, mode=mode, on_step=lambda row: time.sleep(0.002))


@pytest.mark.parametrize("mode", ["while", "replay"])
def test_ctrl_c_ends_the_loop_behind_its_row(runtime, mode):
    rows = endless(runtime, mode)
    with rows.loop:
        threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
        rows.launch(range(10**4))
        with pytest.raises(KeyboardInterrupt):
            rows.loop.wait()
        done = rows.loop.progress().next
        assert 0 < done < 5000
        assert rows.steps == list(range(done))
        # It may be launched again.
        assert rows.run(range(3)) == Progress(3, None)


def test_an_error_of_the_callers_ends_the_loop(runtime):
    rows = endless(runtime)

    def advance(progress):
        raise LookupError("enough")

    with rows.loop:
        rows.launch(range(10**4))
        with pytest.raises(LookupError, match="enough"):
            rows.loop.wait(advance)
        assert rows.loop.is_done()


def test_close_ends_a_running_loop_and_may_be_called_again(runtime):
    rows = endless(runtime)
    rows.launch(range(10**4))
    rows.loop.close()
    assert runtime.live() == {}
    count = len(rows.steps)
    rows.loop.close()
    time.sleep(0.01)
    assert len(rows.steps) == count < 5000
    loop = rows.loop
    for call in (loop.progress, loop.request_stop, loop.wait, loop.is_done, lambda: rows.launch(range(1))):
        with pytest.raises(RuntimeError, match="this loop is closed"):
            call()


def test_a_loop_that_is_let_go_is_released_with_its_owners(runtime):
    class Pool:
        pass

    pool = Pool()
    alive = weakref.ref(pool)
    loop = runtime.loop(runtime.capture(lambda: None), control=fake_cuda.control_block().data_ptr(), owners=[pool])
    del pool
    gc.collect()
    assert alive() is not None
    assert runtime.live()["execs"] == 1
    del loop
    gc.collect()
    assert alive() is None
    assert runtime.live() == {}


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loop_is_not_copied(runtime, duplicate):
    """Two would release one graph."""
    rows = Rows(runtime)
    with rows.loop, pytest.raises(TypeError, match="cannot be copied or pickled"):
        duplicate(rows.loop)


def test_threads_take_turns(runtime):
    runtime.set("threads", 1)
    rows = Rows(runtime, [1] * 50)
    ends, failures = [], []

    def work():
        try:
            for _ in range(5):
                with rows.loop._turn:
                    ends.append(rows.run(range(10)))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    with rows.loop:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not failures
    assert ends == [Progress(10, None)] * 20
    assert rows.steps == list(range(10)) * 20


def test_the_thread_keeps_its_device_and_streams_fit(runtime):
    rows = Rows(runtime, device=1, stream=runtime.stream(1))
    assert runtime.current_device() == 0
    with rows.loop:
        rows.launch(range(5), stream=runtime.stream(1))
        assert runtime.current_device() == 0
        assert rows.loop.wait() == Progress(5, None)
        assert runtime.current_device() == 0
        # A loop of device 0 is built with whatever device the thread was left on.
        other = Rows(runtime)
        with other.loop:
            assert other.run() == Progress(5, None)
        with pytest.raises(CudaError, match=r"^cudaGraphLaunch: "):
            rows.launch(range(5), stream=runtime.stream(0))
        assert rows.run() == Progress(5, None)
    assert runtime.current_device() == 0


def test_a_stream_that_is_captured_takes_no_loop(runtime):
    rows = Rows(runtime)
    with rows.loop:
        runtime.set("capturing", 1)
        with pytest.raises(ValueError, match="launch it outside of the capture"):
            rows.launch(range(5))
        assert not rows.steps
        runtime.set("capturing", 0)
        assert rows.run() == Progress(5, None)


def test_a_device_that_does_not_exist(runtime):
    with pytest.raises(CudaError, match=r"^cudaSetDevice: "):
        Rows(runtime, device=2)


def test_a_fork_leaves_the_loop_to_its_parent(runtime):
    rows = Rows(runtime)
    child = os.fork()
    if child == 0:
        status = 1
        try:
            calls = runtime.calls("cudaGraphExecDestroy")
            for call in (rows.loop.progress, rows.loop.request_stop, rows.loop.wait, lambda: rows.launch(range(1))):
                with pytest.raises(RuntimeError, match="CUDA does not survive a fork"):
                    call()
            rows.loop.close()
            status = 0 if runtime.calls("cudaGraphExecDestroy") == calls else 2
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    with rows.loop:
        assert rows.run() == Progress(5, None)
