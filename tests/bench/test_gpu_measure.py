"""bench/gpu_measure.py: gates, floors, and what is shown of what fails them."""

import contextlib

import gpu_measure
import pytest
import torch
from gpu_measure import Case, Ceilings, Clock

CPU = torch.device("cpu")
CEILINGS = Ceilings(4e12, {"bfloat16": 8e14, "tf32": 4e14, "float32": 5e13})


def case(**arms):
    """Arms that give their one input times a number."""
    return Case(
        "products",
        lambda i: (torch.ones(4) + i,),
        {name.replace("_", " "): lambda inputs, factor=factor: inputs[0] * factor for name, factor in arms.items()},
        lambda inputs: inputs[0].double(),
        "torch",
        torch.float32,
        bytes_moved=32,
    )


def test_row_has_times_ratios_and_the_share_of_the_floor():
    row = gpu_measure.measure(case(fastdiff=1, torch=1), Clock(CPU), 3, CEILINGS)
    assert row["gate"] == "passed"
    for key in ("us", "least_us", "cpu_us", "quartiles_us"):
        assert set(row[key]) == {"fastdiff", "torch"}
    assert row["times_faster_than"]["torch"] == pytest.approx(row["us"]["torch"] / row["us"]["fastdiff"])
    assert row["fraction_of_floor"] == pytest.approx(row["floor_us"] / row["us"]["fastdiff"])


@pytest.mark.parametrize("factor", [1.1, float("nan")])
def test_kernel_off_its_gate_has_no_figure(factor):
    row = gpu_measure.measure(case(fastdiff=factor, torch=1), Clock(CPU), 3, CEILINGS)
    assert row["gate"] == "failed"
    assert not {"us", "cpu_us", "gigabytes_per_second"} & set(row)


def test_one_arm_off_its_gate_fails_the_row():
    wrong = case(fastdiff=1, fastdiff_other=2, torch=1)
    row = gpu_measure.gate(wrong, wrong.make(0))
    assert row["gate"] == "failed"
    assert row["errors"] == {"fastdiff": 0.0, "fastdiff other": 1.0}


def test_floor_is_the_longer_of_bytes_and_products():
    assert CEILINGS.floor(4e6, 0, torch.bfloat16) == pytest.approx(1e-6)
    assert CEILINGS.floor(4e6, 8e9, torch.bfloat16) == pytest.approx(1e-5)
    assert CEILINGS.floor(0, 4e9, torch.float32, True) == pytest.approx(1e-5)
    # Three products in TensorFloat-32 make one in float32, faster than ordinary cores.
    assert CEILINGS.floor(0, 4e9, torch.float32, False) == pytest.approx(3e-5)


@pytest.mark.parametrize("tf32", [True, False, None])
def test_precision_is_set_for_a_while(tf32):
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    with gpu_measure.precision(tf32):
        if tf32 is not None:
            assert torch.backends.cudnn.allow_tf32 is tf32
            assert torch.get_float32_matmul_precision() == ("high" if tf32 else "highest")
    assert before == (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32)


def test_buffers_take_turns_until_none_is_in_the_cache(monkeypatch):
    """So many sets that what lies between two turns of one is more than a cache holds."""
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda self: True))
    sizes = [(1 << 30, 2), (100 << 20, 3), (20 << 20, 13), (1 << 20, gpu_measure.CALLS)]
    for size, expected in sizes:
        assert gpu_measure.num_sets((torch.empty(size, dtype=torch.uint8, device="cpu"), None)) == expected


def test_plain_loop_with_a_float32_state_is_the_loop_in_16_bits():
    """A state in 16 bits is not: its own roundings are larger than what a gate compares."""
    import gpu_networks
    import gpu_sampling

    networks = gpu_networks.Networks(CPU, quick=True)
    networks.dtype = torch.bfloat16
    sampling = gpu_sampling.Sampling(networks, 2, gpu_networks.small_table(10))
    found, plain = sampling.sample("eager"), sampling.plain(networks.ours(), torch.bfloat16)
    assert gpu_measure.error_of(found, plain) < gpu_measure.GATE_SLACK[torch.bfloat16] / 3
    exact = sampling.plain(networks.ours(torch.float64), torch.float64)
    error, allowed = (gpu_measure.error_of(images, exact) for images in (found, plain))
    assert gpu_measure.verdict({"fastdiff": error}, allowed, torch.bfloat16)["gate"] == "passed"


class FakeCuda:
    """What torch.cuda is asked for by a clock: capturing runs the work, a replay is counted."""

    def __init__(self, monkeypatch):
        self.told = told = []

        class Stream:
            def wait_stream(self, other):
                pass

        class Event:
            def __init__(self, enable_timing):
                assert enable_timing

            def record(self):
                told.append("event")

            def synchronize(self):
                told.append("wait")

            def elapsed_time(self, end):
                return 2.0

        class Graph:
            def replay(self):
                told.append("replay")

        @contextlib.contextmanager
        def graph(graph, stream):
            told.append("capture")
            yield

        fakes = {
            "Stream": Stream, "Event": Event, "CUDAGraph": Graph, "graph": graph, "current_stream": Stream,
            "set_stream": lambda stream: None,
            "stream": lambda stream: contextlib.nullcontext(), "synchronize": lambda device=None: None,
            "_sleep": lambda cycles: told.append("sleep"),
        }  # fmt: skip
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        self.clock = Clock(CPU)
        self.clock.on_gpu = True
        self.clock._cache_filler = torch.ones(8)


def test_captured_calls_take_turns_on_buffers_and_keep_their_outputs(monkeypatch):
    fake = FakeCuda(monkeypatch)
    places = []

    def call(i):
        if "capture" in fake.told:
            places.append(i)
        return torch.zeros(1)

    arm = fake.clock.captured(call, 3)
    assert arm.is_captured
    assert 2 <= arm.calls <= gpu_measure.CALLS
    assert places == [i % 3 for i in range(arm.calls)]
    assert fake.clock.stretch(arm) == pytest.approx(2e-3 / arm.calls)


def test_clock_starts_when_the_cache_is_cold_and_the_queue_is_full(monkeypatch):
    fake = FakeCuda(monkeypatch)
    arm = fake.clock.captured(lambda i: torch.zeros(1), 1)
    fake.told.clear()
    fake.clock.stretch(arm)
    assert fake.told == ["sleep", "event", "replay", "event", "wait"]
    assert not fake.clock._cache_filler.any()


def test_arm_that_cannot_be_captured_is_called_and_the_row_says_so(monkeypatch):
    fake = FakeCuda(monkeypatch)
    captured = fake.clock.captured

    def refuse(call, sets):
        # The second arm's.
        if "capture" in fake.told:
            raise RuntimeError("operation not permitted when stream is capturing\nand more")
        return captured(call, sets)

    monkeypatch.setattr(fake.clock, "captured", refuse)
    monkeypatch.setattr(gpu_measure, "copy_bytes_per_second", lambda device, size: 1e12)
    row = gpu_measure.measure(case(fastdiff=1, torch=1), fake.clock, 3, CEILINGS)
    assert row["gate"] == "passed"
    assert set(row["us"]) == {"fastdiff", "torch"}
    assert row["note"] == "called, not captured: torch (operation not permitted when stream is capturing)"
