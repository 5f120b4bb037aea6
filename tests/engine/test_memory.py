"""Memory of the engine: writable numbers of the size asked for, small and large, and gone when nobody holds them."""

import psutil
import pytest
import torch

from fastdiff.engine import memory


@pytest.mark.parametrize("count", [0, 1, memory.LARGE_BYTES // 4 - 1, memory.LARGE_BYTES // 4, 3_000_001])
def test_memory_is_float32_of_the_length_and_can_be_written(count):
    x = memory.empty(count)
    assert (x.shape, x.dtype, x.device.type) == ((count,), torch.float32, "cpu")
    assert x.is_contiguous()
    x.copy_(torch.arange(count, dtype=torch.float32))
    assert torch.equal(x, torch.arange(count, dtype=torch.float32))


def test_large_memory_starts_at_a_page_and_two_blocks_lie_apart():
    first, second = memory.empty(2_000_000), memory.empty(2_000_000)
    assert first.data_ptr() % 4096 == 0
    first.fill_(1)
    second.fill_(2)
    assert bool((first == 1).all())


def test_large_memory_is_given_back():
    mib = 64
    before = psutil.Process().memory_info().rss
    for _ in range(8):
        memory.empty(mib << 18).fill_(1)
    # Eight blocks of 64 MiB were written; at most one may still be counted.
    assert psutil.Process().memory_info().rss - before < 2 * mib << 20


def test_too_much_memory_says_how_much():
    with pytest.raises(RuntimeError, match=r"out of memory: the engine needs [0-9,]+ bytes more"):
        memory.empty(1 << 58)


@pytest.mark.parametrize("count", [5, memory.LARGE_BYTES // 4 + 3])
def test_zeros_are_zeros(count):
    assert not memory.zeros(count).any()
    assert len(memory.zeros(count)) == count
