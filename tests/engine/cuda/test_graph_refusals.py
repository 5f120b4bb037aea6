"""What the loop graph refuses, and what it leaves behind when a call of CUDA fails: nothing."""

import pytest

from fastdiff.engine.cuda.graph import Progress
from fastdiff.engine.cuda.library import ROW, CudaError, LoopUnsupported, RefusedGraph
from support import fake_cuda
from support.fake_cuda import Rows

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
