"""Joining the processes that torchrun, Slurm or another launcher has started for one training."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

from fastdiff.engine.threads import available_cpus
from fastdiff.process.arguments import advised, spelt
from fastdiff.training.interrupt import Interrupted

__all__ = ["Place", "joined", "own_device", "share_threads", "telling"]

# Between two looks at who has come.
_LOOK_SECONDS = 0.05
# For how long the first process waits for the others to end, at the most, and one that fails for the others to hear it.
_PART_SECONDS = 5.0


@dataclass(frozen=True)
class Place:
    """Which of the processes this one is, by the variables that torchrun sets.

    Attributes:
        rank: Of this process, in [0, size).
        size: Processes in all.
        local_rank: Of this process among those of its machine.
        local_size: Processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Place:
        """By RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; one process alone where WORLD_SIZE is not set.

        Raises:
            ValueError: a variable is missing, no whole number, or out of range.
        """
        if "WORLD_SIZE" not in variables:
            return cls()
        size = _number(variables, "WORLD_SIZE", 1)
        rank = _number(variables, "RANK", 0, size - 1)
        local_size = _number(variables, "LOCAL_WORLD_SIZE", 1, size) if "LOCAL_WORLD_SIZE" in variables else 1
        local_rank = _number(variables, "LOCAL_RANK", 0) if "LOCAL_RANK" in variables else 0
        return cls(rank, size, local_rank, max(local_size, local_rank + 1))


def own_device(device: str, place: Place) -> str:
    """The device of a process: of several on a machine with GPUs, each has the one of its LOCAL_RANK.

    Args:
        device: "cpu", "cuda" or "cuda:N".
        place: Of this process.

    Raises:
        ValueError: one GPU is named for several processes, or there are fewer than processes.
    """
    if place.size == 1 or not device.startswith("cuda"):
        return device
    if device != "cuda":
        raise ValueError(
            f"{spelt('device')} {device} is one GPU, and {place.size} processes take one each: give cuda, or start one"
        )
    count = torch.cuda.device_count()
    if place.local_rank >= count:
        raise ValueError(
            f"this machine has {count} GPUs, and the process of LOCAL_RANK {place.local_rank} finds none for itself: "
            f"start at most {count} processes on it"
        )
    torch.cuda.set_device(place.local_rank)
    return f"cuda:{place.local_rank}"


def share_threads(place: Place, variables: Mapping[str, str] = os.environ) -> None:
    """Share the processors of a machine out among its processes, unless OMP_NUM_THREADS says how many threads.

    torchrun sets it to 1 where nobody has, which is therefore taken as nobody's word.
    """
    told = variables.get("OMP_NUM_THREADS")
    if place.local_size > 1 and (told is None or (told == "1" and "TORCHELASTIC_RUN_ID" in variables)):
        torch.set_num_threads(max(1, available_cpus() // place.local_size))


@contextmanager
def joined(place: Place, device: str, wait_seconds: float, variables: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Within the block `torch.distributed` is initialised: with NCCL for a GPU, and gloo for the CPU.

    Args:
        place: Of this process; alone, nothing happens.
        device: Of its network.
        wait_seconds: For how long the processes wait for each other, at the start and at each collective call.
        variables: MASTER_ADDR and MASTER_PORT say where they meet.

    Raises:
        ValueError: a variable is missing, or the processes do not agree on how many they are.
        RuntimeError: the port is in use, the first process does not answer, or others do not come.
    """
    if place.size == 1:
        yield
        return
    wait = timedelta(seconds=wait_seconds)
    store = _meeting(place, wait, variables)
    try:
        _await_all(store, place, wait_seconds)
    except dist.DistError as error:
        raise RuntimeError(
            f"the first process, or torchrun, ended while rank {place.rank} waited for all to come: see what it says"
        ) from error
    backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"
    dist.init_process_group(backend, store=store, rank=place.rank, world_size=place.size, timeout=wait)
    try:
        yield
        _part(store, place)
    except Interrupted:
        # At all of them.
        _part(store, place)
        raise
    finally:
        dist.destroy_process_group()


@contextmanager
def telling(variables: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Within the block, in which this process has not joined the others yet, they hear of its failure.

    Under torchrun, which ends the others itself, and alone, nothing is said.
    """
    try:
        yield
    except Exception as error:
        with suppress(Exception):
            place = Place.of_environment(variables)
            if place.size > 1 and variables.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
                _tell(place, str(error) or type(error).__name__, variables)
        raise


def _tell(place: Place, reason: str, variables: Mapping[str, str]) -> None:
    started = time.monotonic()
    store = _meeting(place, timedelta(seconds=_PART_SECONDS), variables)
    store.set(f"failed/{place.rank}", reason)
    others = [rank for rank in range(place.size) if place.rank == 0 and rank != 0]
    # The store goes with the first process.
    while others and time.monotonic() - started < _PART_SECONDS:
        others = [rank for rank in others if not any(store.check([f"{key}/{rank}"]) for key in ("heard", "failed"))]
        time.sleep(_LOOK_SECONDS)


def _meeting(place: Place, wait: timedelta, variables: Mapping[str, str]) -> Any:
    """The store of the processes: torchrun's, or one that the first process keeps."""
    host = variables.get("MASTER_ADDR")
    if not host:
        raise ValueError(
            "WORLD_SIZE is set and MASTER_ADDR is not: start with torchrun, or set MASTER_ADDR and MASTER_PORT to "
            "where the first process can be reached"
        )
    port = _number(variables, "MASTER_PORT", 1, 65535)
    kept_by_torchrun = variables.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    keeps = place.rank == 0 and not kept_by_torchrun
    try:
        store = TCPStore(host, port, is_master=keeps, timeout=wait, wait_for_workers=False)
    except RuntimeError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error).lower():
            raise RuntimeError(
                f"port {port} of {host} is in use by another program, perhaps by an earlier run: set MASTER_PORT to "
                "another, for all processes"
            ) from error
        raise RuntimeError(
            f"rank {place.rank} could not reach the first process at {host}:{port} (MASTER_ADDR, MASTER_PORT) within "
            f"{wait.total_seconds():g} s: {str(error).splitlines()[0]}"
        ) from error
    return PrefixStore(f"fastdiff/{variables.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def _await_all(store: Any, place: Place, wait_seconds: float) -> None:
    """Wait until all processes have come, and hold what they say to what this one was told."""
    if store.add(f"times/{place.rank}", 1) > 1:
        raise ValueError(f"two processes have RANK {place.rank}: give each its own")
    store.set(f"size/{place.rank}", str(place.size))
    started = time.monotonic()
    awaited = set(range(place.size))
    while awaited:
        for rank in sorted(awaited):
            if store.check([f"failed/{rank}"]):
                reason = store.get(f"failed/{rank}").decode()
                store.set(f"heard/{place.rank}", "")
                raise RuntimeError(f"rank {rank} ended before it joined the others: {reason}")
            if store.check([f"size/{rank}"]):
                theirs = int(store.get(f"size/{rank}"))
                if theirs != place.size:
                    raise ValueError(
                        f"rank {place.rank} was told of {place.size} processes (WORLD_SIZE), and rank {rank} of "
                        f"{theirs}: start all of them with the same number"
                    )
                awaited.remove(rank)
        if awaited and time.monotonic() - started > wait_seconds:
            named = ", ".join(map(str, sorted(awaited)))
            raise RuntimeError(
                f"rank {named} of {place.size} did not come within {wait_seconds:g} s "
                f"({advised('wait_seconds')}): look at what it says, or start fewer"
            )
        time.sleep(_LOOK_SECONDS)


def _part(store: Any, place: Place) -> None:
    """The process that keeps the store ends last, so that no other finds it gone."""
    store.set(f"done/{place.rank}", "")
    if place.rank == 0:
        started = time.monotonic()
        names = [f"done/{rank}" for rank in range(place.size)]
        while not store.check(names) and time.monotonic() - started < _PART_SECONDS:
            time.sleep(_LOOK_SECONDS)


def _number(variables: Mapping[str, str], name: str, low: int, high: int | None = None) -> int:
    text = variables.get(name, "")
    span = f"at least {low}" if high is None else f"{low} to {high}"
    if not text.isdecimal() or int(text) < low or (high is not None and int(text) > high):
        got = repr(text) if name in variables else "nothing"
        raise ValueError(
            f"the variable {name} must be a whole number, {span}, got {got}: start with torchrun, or set RANK, "
            "WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT"
        )
    return int(text)
