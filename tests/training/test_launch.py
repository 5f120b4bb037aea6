"""Joining the processes that a launcher has started."""

from __future__ import annotations

import os
import socket
import threading
import time
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastdiff.training import launch
from fastdiff.training.launch import Place, joined, own_device, share_threads
from support.processes import free_port, together, variables


def test_a_process_without_variables_is_alone() -> None:
    assert Place.of_environment({"RANK": "3"}) == Place(0, 1, 0, 1)
    with joined(Place(), "cpu", 1):
        assert not dist.is_initialized()


def test_the_variables_of_torchrun_are_read() -> None:
    given = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert Place.of_environment(given) == Place(5, 8, 1, 4)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"RANK": ""}, "the variable RANK must be a whole number, 0 to 1, got ''"),
        ({"RANK": "2"}, "RANK must be a whole number, 0 to 1, got '2'"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE must be a whole number, at least 1, got '0'"),
        ({"WORLD_SIZE": "two"}, "got 'two': start with torchrun, or set RANK, WORLD_SIZE"),
        ({"LOCAL_RANK": "-1"}, "LOCAL_RANK must be a whole number"),
    ],
)
def test_wrong_variables_are_named(wrong: dict[str, str], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Place.of_environment(variables(0, 2, 1) | wrong)


def test_a_place_to_meet_is_needed() -> None:
    for missing, said in (("MASTER_ADDR", "MASTER_ADDR is not: start with torchrun"), ("MASTER_PORT", "got nothing")):
        given = {key: value for key, value in variables(0, 2, 9).items() if key != missing}
        with pytest.raises(ValueError, match=said), joined(Place(0, 2), "cpu", 1, given):
            pass


def test_each_process_has_the_gpu_of_its_local_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    assert own_device("cuda", Place(5, 8, 1, 2)) == "cuda:1"
    assert chosen == [1]
    assert own_device("cuda:1", Place()) == "cuda:1"
    assert own_device("cpu", Place(1, 2, 1, 2)) == "cpu"
    with pytest.raises(ValueError, match=r"this machine has 2 GPUs, and the process of LOCAL_RANK 2 finds none"):
        own_device("cuda", Place(2, 3, 2, 3))
    with pytest.raises(ValueError, match=r"device cuda:1 is one GPU, and 2 processes take one each: give cuda"):
        own_device("cuda:1", Place(0, 2, 0, 2))


@pytest.mark.parametrize(
    ("told", "local", "expected"),
    [
        ({}, 2, 4),
        ({}, 3, 2),
        ({}, 20, 1),
        ({"OMP_NUM_THREADS": "1", "TORCHELASTIC_RUN_ID": "x"}, 2, 4),
        ({"OMP_NUM_THREADS": "1"}, 2, None),
        ({"OMP_NUM_THREADS": "3", "TORCHELASTIC_RUN_ID": "x"}, 2, None),
        ({}, 1, None),
    ],
)
def test_processors_are_shared_out(
    monkeypatch: pytest.MonkeyPatch, told: dict[str, str], local: int, expected: int | None
) -> None:
    found: list[int] = []
    monkeypatch.setattr(launch, "available_cpus", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    share_threads(Place(0, local, 0, local), told)
    assert found == ([] if expected is None else [expected])


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with (
            pytest.raises(
                RuntimeError, match=rf"port {port} of 127\.0\.0\.1 is in use by another program.*MASTER_PORT"
            ),
            joined(Place(0, 2), "cpu", 5, variables(0, 2, port)),
        ):
            pass


def test_a_first_process_that_does_not_answer_is_named() -> None:
    port = free_port()
    said = rf"rank 1 could not reach the first process at 127\.0\.0\.1:{port} \(MASTER_ADDR, MASTER_PORT\) within 1 s"
    with pytest.raises(RuntimeError, match=said), joined(Place(1, 2), "cpu", 1, variables(1, 2, port)):
        pass


def meet(places: list[Place], wait_seconds: float) -> list[str]:
    """What processes say that meet, here threads; they do not get as far as to join."""
    port = free_port()
    said = [""] * len(places)
    # That of the first process lives for as long as the others look at it.
    stores = []

    def come(number: int, place: Place) -> None:
        try:
            store = launch._meeting(place, launch.timedelta(seconds=5), variables(place.rank, place.size, port))
            stores.append(store)
            launch._await_all(store, place, wait_seconds)
        except (ValueError, RuntimeError) as error:
            said[number] = str(error)

    threads = [threading.Thread(target=come, args=pair) for pair in enumerate(places)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return said


def test_processes_that_were_told_of_other_numbers_say_so() -> None:
    said = meet([Place(0, 2), Place(1, 3)], 5)
    assert said[0] == (
        "rank 0 was told of 2 processes (WORLD_SIZE), and rank 1 of 3: start all of them with the same number"
    )
    assert said[1].startswith("rank 1 was told of 3 processes (WORLD_SIZE), and rank 0 of 2")


def test_processes_that_do_not_come_or_come_twice_are_named() -> None:
    assert (
        meet([Place(0, 3), Place(2, 3)], 0.3)
        == ["rank 1 of 3 did not come within 0.3 s (wait_seconds): look at what it says, or start fewer"] * 2
    )
    assert "two processes have RANK 1: give each its own" in meet([Place(0, 3), Place(1, 3), Place(1, 3)], 0.3)


def exchange(rank: int) -> Any:
    value = torch.tensor([rank + 1.0])
    dist.all_reduce(value)
    return value.item(), dist.get_backend(), os.environ["RANK"]


def test_joined_processes_reach_each_other() -> None:
    outcomes = together(2, exchange)
    assert [outcome.value for outcome in outcomes] == [(3.0, "gloo", "0"), (3.0, "gloo", "1")]


@pytest.mark.parametrize("fails", [0, 1])
def test_a_process_that_fails_before_it_joins_is_heard_at_once(fails: int) -> None:
    port, said = free_port(), [""] * 2

    def come(rank: int) -> None:
        given = variables(rank, 2, port)
        try:
            if rank == fails:
                with launch.telling(given):
                    raise ValueError("there is no such folder")
            with joined(Place(rank, 2), "cpu", 60, given):
                pass
        except (ValueError, RuntimeError) as error:
            said[rank] = f"{type(error).__name__}: {error}"

    started = time.monotonic()
    threads = [threading.Thread(target=come, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - started < 20
    assert said[fails] == "ValueError: there is no such folder"
    heard = f"RuntimeError: rank {fails} ended before it joined the others: there is no such folder"
    assert said[1 - fails] == heard


def test_a_process_that_fails_alone_or_under_torchrun_tells_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_tell", lambda *_: pytest.fail("told"))
    torchrun = variables(0, 2, 1) | {"TORCHELASTIC_USE_AGENT_STORE": "True"}
    for given in ({}, torchrun):
        with pytest.raises(KeyError), launch.telling(given):
            raise KeyError("x")
