"""What the ops ask of their arguments, and when something watches them."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff.ops import _arguments as arguments

X = torch.zeros(3, 2, 4, 4)


def test_samples_and_rows_are_counted_where_none_are_given():
    ids, row = arguments.noise_arguments(X, None, None, 5)
    assert (ids.tolist(), row.tolist()) == ([0, 1, 2], [5])
    assert ids.dtype == row.dtype == torch.int64
    # Beyond what is kept at hand.
    ids, row = arguments.noise_arguments(torch.zeros(5000, 1), None, None, 2**28 - 1)
    assert torch.equal(ids, torch.arange(5000))
    assert row.tolist() == [2**28 - 1]


def test_given_samples_and_rows_are_handed_on():
    given, rows = torch.tensor([7, 7, 2**40]), torch.tensor([0, 1, 2])
    ids, row = arguments.noise_arguments(X, torch.zeros_like(X), given, rows)
    assert ids is given
    assert row is rows


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"noise": torch.zeros(3, 2, 4)}, r"noise must be floating point \[3, 2, 4, 4\] on cpu, got .*\[3, 2, 4\]"),
        ({"noise": torch.zeros_like(X).int()}, "noise must be floating point"),
        ({"noise": torch.zeros_like(X, device="meta")}, "on cpu, got .* on meta"),
        ({"sample_ids": torch.arange(2)}, r"sample_ids must be int64 \[3\]"),
        ({"sample_ids": torch.arange(3.0)}, "sample_ids must be int64"),
        ({"row": torch.tensor([1, 2])}, r"row must be int64 \[1\] or \[3\]"),
        ({"row": torch.tensor(1)}, "row must be int64"),
        ({"row": -1}, r"row must be in \[0, 2\^28\), got -1"),
        ({"row": 2**28}, "row must be in"),
    ],
    ids=str,
)
def test_noise_arguments_refuse_what_does_not_fit(changes, said):
    given = {"noise": None, "sample_ids": None, "row": 0} | changes
    with pytest.raises(ValueError, match=said):
        arguments.noise_arguments(X, given["noise"], given["sample_ids"], given["row"])


def test_an_index_out_of_range_is_named_on_the_cpu():
    arguments.check_index("t", torch.tensor([0, 9]), 10)
    arguments.check_index("t", torch.zeros(0, dtype=torch.int64), 10)
    for bad in (-1, 10):
        with pytest.raises(IndexError, match=rf"t must be in \[0, 10\), got {bad}"):
            arguments.check_index("t", torch.tensor([3, bad]), 10)
    # Elsewhere the values are not read.
    arguments.check_index("t", torch.full((1,), 99, device="meta"), 10)


@pytest.mark.parametrize("seed", [0, 1, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_seed_keeps_its_64_bits_as_a_signed_number(seed):
    signed = arguments.signed(seed)
    assert -(2**63) <= signed < 2**63
    assert signed % 2**64 == seed


@pytest.mark.filterwarnings("ignore:.torch.jit.trace:DeprecationWarning")
def test_modes_transforms_and_tracers_watch():
    seen = []

    def look(x):
        seen.append(arguments.is_unwatched())
        return x

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            return func(*args, **(kwargs or {}))

    look(X)
    with torch.no_grad():
        look(X)
    with Mode():
        look(X)
    torch.func.vmap(look)(X)
    torch.jit.trace(look, X, check_trace=False)
    make_fx(look)(X)
    look(X)
    assert seen == [True, True, False, False, False, False, True]


def test_counting_under_a_mode_is_not_kept():
    """A tensor of numbers from a mode would be of that mode's kind for ever."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    with FakeTensorMode():
        ids, row = arguments.noise_arguments(torch.zeros(41, 2), None, None, 4001)
        assert isinstance(ids, FakeTensor)
    ids, row = arguments.noise_arguments(torch.zeros(41, 2), None, None, 4001)
    assert (ids.tolist(), row.tolist()) == (list(range(41)), [4001])


def test_what_a_capture_makes_is_its_own(monkeypatch):
    """Memory of a capture's pool, with no numbers in it yet, must not serve later calls; nor kept memory a graph."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert arguments._may_keep(torch.device("cpu"))
    assert not arguments._may_keep(torch.device("cuda"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert arguments._may_keep(torch.device("cuda"))


def test_kept_numbers_are_there_before_another_stream_can_read_them(monkeypatch):
    done = []

    class Stream:
        def synchronize(self):
            done.append("synchronized")

    def on_cpu(length, dtype, device):
        done.append(device.type)
        return numbers[:length]

    numbers = torch.arange(8192)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream())
    monkeypatch.setattr(torch, "arange", on_cpu)
    made = arguments._kept_from_zero.__wrapped__(5000, torch.device("cuda"))
    assert done == ["cuda", "synchronized"]
    assert made.shape == (5000,)
