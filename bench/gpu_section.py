"""One section of the GPU suite, in a process of its own: `gpu_suite.py` starts it, and kills it at its limit.

    python bench/gpu_section.py NAME --records FILE --seconds S [--device cpu --quick] [--dry-run]

Each task's row is written as soon as it is there. A task that raises costs its own row; only where the GPU no longer
answers the section ends, because nothing that follows in this process could be right.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import importlib
import os
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path

import gpu_process
import gpu_records
import gpu_sections
from gpu_tasks import Context, Task, not_run

# Before the end, so that the log says where a hanging section hung.
LAST_WORDS_SECONDS = 1.5
# Of a section's time at most, for compiling its kernels by several processes.
WARM_SHARE = 0.45
MOST_WARMERS = 12
# Whose kernels sections before have compiled, where these were run.
WARMED_BEFORE = ("smoke", "loop", "images")


class DeviceLost(RuntimeError):
    """The GPU no longer answers this process."""


def main() -> int:
    """Run the tasks of a section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("section", choices=gpu_sections.NAMES)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--fault", default="")
    parser.add_argument("--cold", action="store_true", help="it is run without those before it")
    parser.add_argument("--warm", default="", help="i/n: only compile what every n-th task from i on needs")
    options = parser.parse_args()
    gpu_process.die_with_parent()
    faulthandler.enable()
    faulthandler.dump_traceback_later(options.seconds - min(LAST_WORDS_SECONDS, options.seconds / 2))
    context = Context(
        section=options.section,
        records=options.records,
        end=time.monotonic() + options.seconds,
        device=options.device,
        quick=options.quick,
        settings={"fault": options.fault},
    )
    if options.warm:
        warm_share(context, *map(int, options.warm.split("/")))
        return 0
    error = None
    try:
        tasks = tasks_of(context, options.dry_run)
        if context.on_gpu and not options.dry_run and (options.cold or context.section not in WARMED_BEFORE):
            warm(context, tasks)
        run(context, tasks)
    except Exception as caught:
        traceback.print_exc()
        error = f"{type(caught).__name__}: {caught}"
    gpu_records.append(context.records, {"section": context.section, "end": True, "error": error})
    # Nothing that a library does on its way out is worth its time, or can change the results.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def tasks_of(context: Context, is_dry: bool = False) -> list[Task]:
    """The section's tasks."""
    if not is_dry:
        importlib.import_module("checkout")
    where = next(section.where for section in gpu_sections.SECTIONS if section.name == context.section)
    module, _, function = ("gpu_stand_ins:tasks" if is_dry else where).partition(":")
    return list(getattr(importlib.import_module(module), function)(context))


def run(context: Context, tasks: Iterable[Task]) -> None:
    """Run tasks one after the other, writing their rows."""
    for task in tasks:
        if context.left < task.seconds:
            reason = f"{max(0, context.left):.0f} s were left, and it takes {task.seconds:.0f}"
            context.write(task.name, not_run(reason))
            continue
        context.begin(task.name)
        begun = time.monotonic()
        try:
            found = task.run()
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            found = {"gate": "error", "reason": message, "trace": traceback.format_exc(limit=-4)}
        for row in found if isinstance(found, list) else [found]:
            row.setdefault("seconds", round(time.monotonic() - begun, 2))
            context.write(row.pop("name", task.name), row)
        # Its memory, before the next takes some.
        del found
        gc.collect()
        free_memory(context, task.name)


def free_memory(context: Context, after: str) -> None:
    """Hand the GPU's memory back, and find out whether it still answers."""
    torch = sys.modules.get("torch")
    if torch is None or not context.on_gpu or not torch.cuda.is_initialized():
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
    except RuntimeError as error:
        raise DeviceLost(f"the GPU answers no more after {after!r}: {error}") from error


def warm(context: Context, tasks: list[Task]) -> None:
    """Compile the tasks' kernels by several processes, into the cache that this one then reads."""
    count = min(MOST_WARMERS, sum(task.warm is not None for task in tasks), (os.cpu_count() or 2) - 2)
    if count < 2:
        return
    seconds = context.left * WARM_SHARE
    begun = time.monotonic()
    # Of this process's group, so that they end with it.
    warmers = start_warmers(context, context.section, count, seconds)
    for warmer in warmers:
        try:
            warmer.wait(max(0.1, seconds - (time.monotonic() - begun)))
        except subprocess.TimeoutExpired:
            warmer.kill()
            warmer.wait()
    print(f"{context.section}: {count} processes compiled for {time.monotonic() - begun:.1f} s", flush=True)


def start_warmers(context: Context, section: str, count: int, seconds: float) -> list[subprocess.Popen[bytes]]:
    """Processes that compile what a section's tasks need, each a share of them."""
    command = [sys.executable, __file__, section, "--records", os.devnull, "--seconds", str(seconds)]
    command += ["--device", context.device, *(["--quick"] if context.quick else [])]
    # One thread each: PyTorch's own would fight for the cores that the compilers need.
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([*command, "--warm", f"{i}/{count}"], env=environment) for i in range(count)]


def warm_share(context: Context, first: int, every: int) -> None:
    """Compile what a share of the tasks needs; what fails here fails again, and is told, where it is run."""
    for task in [task for task in tasks_of(context) if task.warm is not None][first::every]:
        if task.warm is not None and context.left > 0:
            try:
                task.warm()
            except Exception as error:
                print(f"warming {task.name}: {type(error).__name__}: {error}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
