"""What processes that train together tell each other."""

from __future__ import annotations

import os
import re
import signal
import time
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastdiff.training.world import World
from support.processes import together


@pytest.mark.parametrize("size", [1, 2, 3, 6])
def test_places_are_shared_out(size: int) -> None:
    parts = [World(rank, size).places(6) for rank in range(size)]
    assert [part.tolist() for part in parts] == [list(range(rank, 6, size)) for rank in range(size)]
    assert all(part.dtype == np.int64 for part in parts)
    assert [World(rank, size).is_first for rank in range(size)] == [True, *[False] * (size - 1)]


def test_one_process_is_its_own_world() -> None:
    world = World.current()
    assert (world.rank, world.size) == (0, 1)
    values = torch.arange(3)
    assert world.whole(values, values)[0] is values
    assert world.first(lambda: 5) == 5
    assert world.agreed() is None
    world.asks = lambda: 15
    assert world.agreed() == 15
    world.compare({"a": "b"})
    world.share([values])
    with pytest.raises(RuntimeError, match=r"^Connection closed$"), world.watched(lambda: "x"):
        raise RuntimeError("Connection closed")


def talk(rank: int) -> dict[str, Any]:
    world = World.current()
    assert (world.rank, world.size) == (rank, 3)
    places = torch.from_numpy(world.places(6))
    world.asks = lambda: 15 if rank == 1 else None
    found: dict[str, Any] = {}
    whole, halves = world.whole(places, places.float() / 2)
    found["whole"], found["halves"] = whole.tolist(), halves.tolist()
    found["types"] = (str(whole.dtype), str(halves.dtype))
    found["agreed"] = world.agreed()
    world.asks = lambda: None
    world.whole(places)
    found["later"] = world.agreed()
    found["first"] = world.first(lambda: f"made by {rank}")

    def fails(error: Exception) -> Any:
        raise error

    for error in (ValueError("a"), RuntimeError("b"), OSError("c")):
        try:
            world.first(lambda error=error: fails(error))  # type: ignore[misc]
        except (ValueError, RuntimeError, OSError) as caught:
            found[str(error)] = type(caught).__name__
    shared = torch.full((2,), float(rank))
    world.share([shared])
    found["shared"] = shared.tolist()
    world.compare({"x": "1"})
    try:
        world.compare({"y": "1", "x": "2" if rank == 2 else "1"})
    except ValueError as error:
        found["compared"] = str(error)
    return found


def test_processes_exchange_in_the_order_of_places() -> None:
    outcomes = together(3, talk)
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is None
        found = outcome.value
        assert found["whole"] == [0, 1, 2, 3, 4, 5]
        assert found["halves"] == [0, 0.5, 1, 1.5, 2, 2.5]
        assert found["types"] == ("torch.int64", "torch.float32")
        assert (found["agreed"], found["later"]) == (15, None)
        assert found["first"] == "made by 0"
        # Of what is no error of a caller or of the environment, the other processes have the message.
        assert [found[name] for name in "abc"] == ["ValueError", "RuntimeError", "RuntimeError" if rank else "OSError"]
        assert found["shared"] == [0, 0]
        assert found["compared"] == (
            "the processes do not fit each other: x is 1 at rank 0 and 2 at rank 2; start all of them with the same "
            "code, settings and data"
        )


def in_trouble(rank: int, kind: str) -> None:
    """The last process gets into trouble, the others wait for it."""
    world = World.current()
    last = world.size - 1
    world.compare({})
    with world.watched(lambda: "step 7"):
        if rank == last:
            if kind == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if kind == "stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if kind == "hangs":
                time.sleep(9)
            if kind == "fails":
                raise RuntimeError("there is no such image")
        dist.all_reduce(torch.zeros(5))


NAMED = {
    "killed": r"^RuntimeError: rank 2 \(.*, process \d+\) was lost at step 7 \(seen at step 7 by rank \d\); ",
    "stopped": r"^RuntimeError: rank 2 \(.*, process \d+\) was lost at step 7 \(seen",
    "hangs": r"^RuntimeError: rank 2 \(.*\) lives and was waited for in vain at step 7: it hangs.*wait_seconds",
    "fails": r"^RuntimeError: rank 2 \(.*\) ended: there is no such image \(seen at step 7",
}


@pytest.mark.parametrize("kind", NAMED)
def test_who_is_missing_is_named(kind: str) -> None:
    started = time.monotonic()
    outcomes = together(3, in_trouble, kind, wait_seconds=3.0)
    assert time.monotonic() - started < 40
    for outcome in outcomes[:2]:
        assert outcome.error is not None
        assert re.search(NAMED[kind], outcome.error), outcome.error
