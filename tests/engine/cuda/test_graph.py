"""The loop graph over a CUDA runtime without a GPU: which rows run, how they stop, what is refused, what is left."""

import copy
import gc
import os
import pickle
import signal
import threading
import time
import weakref

import pytest

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import (
    CONTROL_WIDTH,
    END,
    NONFINITE,
    NUM_ROWS,
    ROW,
    SEED,
    CudaError,
    LoopUnsupported,
    RefusedGraph,
)
from support import fake_cuda

MODES = ["while", "replay", "unrolled"]
# Of cudaGraphNodeType, those that a body does not take, and what they are called.
REFUSED = {
    3: "a host function",
    6: "a wait for an external event",
    7: "a record of an external event",
    8: "a signal of an external semaphore",
    9: "a wait for an external semaphore",
    10: "an allocation of memory",
    11: "a release of memory",
    13: "a conditional node",
}
MEMSET, EMPTY = 2, 5


@pytest.fixture
def runtime():
    runtime = fake_cuda.runtime()
    runtime.reset()
    yield runtime
    gc.collect()
    violation, live, errors = runtime.violation(), runtime.live(), list(runtime.errors)
    runtime.reset()
    assert (violation, live, errors) == ("", {}, [])


class Rows:
    """A loop over R rows whose graphs write down what runs."""

    def __init__(self, runtime, evaluates=(1, 1, 0, 1, 0), *, mode="while", on_step=lambda row: None, **options):
        self.runtime, self.mode, self.evaluates = runtime, mode, list(evaluates)
        self.control, self.table = fake_cuda.control_block(), fake_cuda.rows_that(evaluates)
        self.seen, self.steps, self.networks = [], [], []
        self.on_step = on_step
        unroll = options.pop("unroll", range(len(self.evaluates)))
        self.loop = runtime.loop(
            runtime.capture(self._step, device=options.get("device", 0)),
            network=runtime.capture(lambda: self.networks.append(self.row()), device=options.get("device", 0)),
            control=self.control.data_ptr(),
            rows=self.table.data_ptr(),
            mode=mode,
            unroll=unroll if mode == "unrolled" else None,
            evaluates=self.evaluates[unroll.start : unroll.stop] if mode == "unrolled" else None,
            **options,
        )

    def row(self):
        return int(self.control[ROW])

    def _step(self):
        self.steps.append(self.row())
        self.seen.append(self.control.tolist())
        self.on_step(self.row())

    def launch(self, rows, **options):
        flags = self.evaluates[rows.start : rows.stop] if self.mode == "replay" else None
        options.setdefault("num_rows", len(self.evaluates))
        self.loop.launch(rows, evaluates=flags, **options)

    def run(self, rows=None, **options):
        self.launch(range(len(self.evaluates)) if rows is None else rows, **options)
        return self.loop.wait()


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
    with rows.loop:
        assert rows.run(stream=runtime.stream(1)) == Progress(5, None)
        # A loop of device 0 is built with whatever device the thread was left on.
        other = Rows(runtime)
        with other.loop:
            assert other.run() == Progress(5, None)
        with pytest.raises(CudaError, match=r"^cudaGraphLaunch: "):
            rows.launch(range(5), stream=runtime.stream(0))
        assert rows.run() == Progress(5, None)


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


def test_a_driver_without_loops_replays(runtime):
    runtime.set("driver", 12020)
    with pytest.raises(LoopUnsupported, match=r"12\.4 or later, got one for CUDA 12\.2: replay the rows, or update"):
        Rows(runtime)
    for mode in ("replay", "unrolled"):
        rows = Rows(runtime, mode=mode)
        with rows.loop:
            assert rows.run() == Progress(5, None)
        assert rows.networks == [0, 1, 3]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("where", ["network", "step"])
def test_a_node_that_a_body_does_not_take_is_named(runtime, kind, where):
    bad, good = runtime.capture(lambda: None), runtime.capture(lambda: None)
    runtime.add_node(bad, kind)
    graphs = {"network": good, "step": good} | {where: bad}
    place = rf"^the {where}'s graph, node 2 of 2 is {REFUSED[kind]}, which the body of a loop does not take: "
    with pytest.raises(RefusedGraph, match=place) as caught:
        runtime.loop(**graphs, control=1, every_row=True)
    assert caught.value.code < 0
    assert runtime.calls("cudaGraphInstantiateWithParams") == 0
    outer = runtime.capture(lambda: None, lambda: None)
    runtime.add_child(outer, bad)
    graphs[where] = outer
    with pytest.raises(RefusedGraph, match=rf"graph, node 3 of 3, a child graph, node 2 of 2 is {REFUSED[kind]}"):
        runtime.loop(**graphs, control=1, every_row=True)


def test_allocations_are_told_what_to_do(runtime):
    graph = runtime.capture()
    runtime.add_node(graph, 10)
    with pytest.raises(RefusedGraph, match="backend:cudaMallocAsync"):
        runtime.loop(graph, control=1)


def test_nodes_that_a_body_takes(runtime):
    step = runtime.capture(lambda: None)
    runtime.add_node(step, MEMSET)
    runtime.add_node(step, EMPTY)
    control = fake_cuda.control_block()
    with runtime.loop(step, control=control.data_ptr()) as loop:
        loop.launch(range(2), num_rows=2)
        assert loop.wait() == Progress(2, None)


@pytest.mark.parametrize("nodes", [[], [EMPTY, EMPTY]], ids=["none", "empty ones"])
def test_an_empty_graph_is_refused(runtime, nodes):
    """It hangs before driver 570."""
    empty = runtime.capture()
    for kind in nodes:
        runtime.add_node(empty, kind)
    with pytest.raises(RefusedGraph, match="the network's graph is empty"):
        runtime.loop(runtime.capture(lambda: None), network=empty, control=1, every_row=True)
    outer = runtime.capture()
    runtime.add_child(outer, empty)
    with pytest.raises(RefusedGraph, match="the step's graph is empty"):
        runtime.loop(outer, control=1)


def test_a_cooperative_kernel_is_refused_where_processes_share_the_gpu(runtime):
    step = runtime.capture(lambda: None, cooperative=True)
    control = fake_cuda.control_block()
    runtime.loop(step, control=control.data_ptr()).close()
    runtime.set("mps", 1)
    with pytest.raises(RefusedGraph, match=r"node 1 of 1 is a cooperative kernel.*MPS"):
        runtime.loop(step, control=control.data_ptr())


def test_copies_are_of_device_or_pinned_memory(runtime):
    source, target, control = (fake_cuda.control_block() for _ in range(3))
    step = runtime.capture()
    runtime.add_copy(step, target, source)
    with pytest.raises(RefusedGraph, match=r"a copy of pageable host memory.*pinned"):
        runtime.loop(step, control=control.data_ptr())
    runtime.register(source)
    runtime.register(target)
    source.fill_(3)
    with runtime.loop(step, control=control.data_ptr()) as loop:
        loop.launch(range(1), num_rows=1)
        loop.wait()
    assert target.eq(3).all()
    array = runtime.capture()
    runtime.add_copy(array, target, source, is_array=True)
    with pytest.raises(RefusedGraph, match="a copy of a CUDA array"):
        runtime.loop(array, control=control.data_ptr())


def test_what_only_instantiation_finds_is_told_with_the_node(runtime):
    """A kernel of another device."""
    step = runtime.capture(lambda: None, device=1)
    with pytest.raises(CudaError, match=r"^cudaGraphInstantiateWithParams: .*several contexts; the node is a kernel"):
        runtime.loop(step, control=1)


@pytest.mark.parametrize("mode", MODES)
def test_each_call_failing_in_turn_is_told_and_leaves_nothing(runtime, mode):
    seen = set()
    for nth in range(1000):
        runtime.reset()
        runtime.fail(None, nth, 2)
        rows = None
        try:
            rows = Rows(runtime, mode=mode, device=1)
            rows.run()
            rows.loop.close()
        except CudaError as error:
            told = str(error), error.code
        else:
            told = None
        if rows is not None:
            rows.loop.close()
        failed = runtime.failed()
        if not failed:
            assert told is None
            break
        # The one call whose failure has nobody to be told: the thread is given its device back.
        if told is not None or failed != "cudaSetDevice":
            assert told == (f"{failed}: out of memory (cudaErrorMemoryAllocation)", 2)
        seen.add(failed)
        assert runtime.live() == {}, failed
        assert runtime.violation() == ""
    assert seen >= {"cudaGraphCreate", "cudaGraphLaunch", "cudaEventQuery", "cudaHostAlloc", "cudaGraphExecDestroy"}
    assert ("cudaGraphConditionalHandleCreate" in seen) == (mode == "while")


def test_a_fault_of_a_kernel_is_raised_by_wait_and_close_is_silent_behind_it(runtime):
    launch_failure = 719
    rows = Rows(runtime, on_step=lambda row: runtime.set("fault", launch_failure))
    with pytest.raises(CudaError, match=r"^cuda\w+: unspecified launch failure") as caught, rows.loop:
        rows.run()
    assert caught.value.code == launch_failure
    assert rows.steps == [0]
    assert runtime.live() == {}


def test_a_row_that_never_ends_the_loop_is_cut_off(runtime):
    """The fake GPU has a watchdog, so that a loop without an end is a red test."""
    rows = Rows(runtime, on_step=lambda row: rows.control.__setitem__(ROW, -2))
    with pytest.raises(CudaError, match="the launch timed out"), rows.loop:
        rows.run()


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"mode": "forever"}, "mode must be one of"),
        ({"mode": "unrolled"}, "unroll is for mode 'unrolled'"),
        ({"unroll": range(2)}, "unroll is for mode 'unrolled'"),
        ({"mode": "unrolled", "unroll": range(2)}, "evaluates must say which rows run the network"),
        ({"mode": "unrolled", "unroll": range(2), "evaluates": [1]}, "a value for each of 2 rows, got 1"),
        ({"mode": "unrolled", "unroll": range(2, 2), "evaluates": []}, "an unrolled loop needs its rows"),
        ({"control": 0}, "needs a control block"),
        ({"rows": None}, "needs the rows"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(runtime, options, complaint):
    graph = runtime.capture(lambda: None)
    with pytest.raises(ValueError, match=complaint):
        runtime.loop(graph, **({"network": graph, "control": 1, "rows": 1} | options))


def test_launches_that_do_not_fit_are_refused(runtime):
    rows = Rows(runtime)
    with rows.loop:
        for bad in (range(-1, 3), range(3, 6), range(6, 6)):
            with pytest.raises(ValueError, match=r"rows must be in \[0, 5\), got"):
                rows.launch(bad)
        with pytest.raises(ValueError, match="must follow each other"):
            rows.launch(range(0, 4, 2))
        with pytest.raises(ValueError, match="seed"):
            rows.launch(range(5), seed=2**64)
    whole = Rows(runtime, mode="replay", every_row=True)
    with whole.loop, pytest.raises(ValueError, match="a row without an evaluation"):
        whole.launch(range(5))
    short = Rows(runtime, mode="replay")
    with short.loop, pytest.raises(ValueError, match="evaluates must say"):
        short.loop.launch(range(5), num_rows=5)
