"""Several processes that train together, forked from one that has imported everything: a tenth of a second each."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import Any

from fastdiff.training.launch import Place, joined

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "fastdiff.training.trainer",
        "fastdiff.cli.app",
        "fastdiff.pipeline",
        "fastdiff.generation.score",
        "support.training_runs",
    ]
)


@dataclass
class Outcome:
    """What became of a process: what it returned, or the type and message of what it raised, and its exit code."""

    value: Any = None
    error: str | None = None
    exit_code: int | None = None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def variables(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip


def together(
    size: int, work: Callable[..., Any], *arguments: Any, wait_seconds: float = 60.0, join: bool = True
) -> list[Outcome]:
    """Call `work(rank, *arguments)` in `size` processes, joined by gloo unless `join` is False, and await them all."""
    port = free_port()
    processes, pipes = [], []
    for rank in range(size):
        here, there = FORKS.Pipe(duplex=False)
        process = FORKS.Process(
            target=_child, args=(there, rank, size, port, work, arguments, wait_seconds, join), daemon=True
        )
        process.start()
        there.close()
        processes.append(process)
        pipes.append(here)
    outcomes = [Outcome() for _ in range(size)]
    open_pipes: dict[Any, int] = {pipe: rank for rank, pipe in enumerate(pipes)}
    while open_pipes:
        ready = wait(list(open_pipes), timeout=120)
        assert ready, f"ranks {sorted(open_pipes.values())} say nothing for two minutes"
        for pipe in ready:
            rank = open_pipes.pop(pipe)
            try:
                outcomes[rank].value, outcomes[rank].error = pipe.recv()  # type: ignore[union-attr]
            except EOFError:
                # It was killed.
                continue
            # A stopped process lives for as long as its others wait; those that are done end it.
            if len(open_pipes) == 1 and outcomes[rank].error is not None:
                (left,) = open_pipes.values()
                if _is_stopped(processes[left].pid):
                    os.kill(processes[left].pid or 0, signal.SIGKILL)
    for process, outcome in zip(processes, outcomes, strict=True):
        process.join(60)
        outcome.exit_code = process.exitcode
    return outcomes


def _is_stopped(pid: int | None) -> bool:
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] == "T"


def _child(
    pipe: Connection, rank: int, size: int, port: int, work: Any, arguments: Any, wait_seconds: float, join: bool
) -> None:
    import sys

    import torch

    # As the fixtures of the tests' own process have it.
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]
    torch.set_num_threads(1)
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGTERM, signal.SIG_DFL),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        signal.signal(number, handler)
    os.environ |= variables(rank, size, port)
    try:
        if join:
            with joined(Place.of_environment(), "cpu", wait_seconds):
                value = work(rank, *arguments)
        else:
            value = work(rank, *arguments)
        pipe.send((value, None))
    except BaseException as error:
        if not isinstance(error, RuntimeError | ValueError | KeyboardInterrupt):
            traceback.print_exc()
        pipe.send((None, f"{type(error).__name__}: {error}"))
