"""Reading ahead: begun before it is asked for, the same whatever the number of threads, errors where they belong."""

import threading
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.reading import ReadAhead
from fastdiff.data.source import UnreadableImageError
from support.training_runs import images


@dataclass
class Slow:
    """A source of numbers that reads when it is let, and knows which threads read what."""

    workers: int = 2
    num_draws: int = 0
    bad: int = -1
    gate: threading.Event = field(default_factory=threading.Event)
    seen: list[tuple[str, list[int]]] = field(default_factory=list)

    def read(self, indices: NDArray[np.int64], draws: NDArray[np.uint32] | None = None) -> Tensor:
        assert self.gate.wait(20)
        self.seen.append((threading.current_thread().name, indices.tolist()))
        if self.bad in indices:
            raise UnreadableImageError(f"image {self.bad} is damaged")
        values = torch.from_numpy(indices)[:, None, None, None]
        return values if draws is None else values + torch.from_numpy(draws.astype(np.int64))[:, :1, None, None]


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 8])
@pytest.mark.parametrize("num", [0, 1, 2, 7])
def test_reading_gives_the_images_in_order_whatever_the_threads(workers: int, num: int) -> None:
    source: Any = Slow(workers)
    source.gate.set()
    indices, draws = np.arange(num)[::-1].copy(), np.arange(2 * num, dtype=np.uint32).reshape(num, 2)
    read = ReadAhead(source).read((0, b""), indices, draws)
    assert read.flatten().tolist() == (indices + draws[:, 0]).tolist()


def test_reading_begins_before_it_is_asked_for_and_only_once() -> None:
    source: Any = Slow(2)
    reader = ReadAhead(source)
    for _ in range(3):
        reader.start((1, b"a"), np.arange(4), None)
    source.gate.set()
    assert reader.read((1, b"a"), np.arange(4), None).flatten().tolist() == [0, 1, 2, 3]
    assert sorted(part for _, part in source.seen) == [[0, 1], [2, 3]]
    assert all(name.startswith("fastdiff-data") for name, _ in source.seen)


def test_reading_raises_where_the_images_are_asked_for() -> None:
    source: Any = Slow(2, bad=3)
    source.gate.set()
    reader = ReadAhead(source)
    reader.start((1, b""), np.arange(4), None)
    assert len(reader.read((0, b""), np.array([7, 8]), None)) == 2
    with pytest.raises(UnreadableImageError, match="image 3"):
        reader.read((1, b""), np.arange(4), None)
    # What is asked for again is read again.
    source.bad = -1
    assert len(reader.read((1, b""), np.arange(4), None)) == 4


def test_reading_drops_what_nobody_wants() -> None:
    source: Any = Slow(1)
    reader = ReadAhead(source)
    for step in range(5):
        reader.start((step, b""), np.array([step]), None)
    reader.forget({(0, b""), (4, b"")})
    source.gate.set()
    for step in (0, 4):
        assert reader.read((step, b""), np.array([step]), None).item() == step
    # The second may have been begun, the others were not.
    assert {index for _, part in source.seen for index in part} <= {0, 1, 4}


def test_reading_from_memory_takes_no_thread() -> None:
    data = images()
    reader = ReadAhead(data)
    reader.start((0, b""), np.arange(3), None)
    assert torch.equal(reader.read((0, b""), np.arange(3), None), data.images[:3])
