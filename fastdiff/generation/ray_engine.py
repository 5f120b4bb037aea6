"""The parts of a job made by Ray Data: an actor pool that holds the network, on one machine as on a cluster.

The folder is the checkpoint: it must be one that every machine sees. Ray starts an actor that was lost again and gives
its part to another; a part that is there already is not made a second time.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastdiff.generation.folder import JobFolder
from fastdiff.generation.running import Progress, Work
from fastdiff.generation.shards import Shard
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number

__all__ = ["run_by_ray"]

# Of a machine that Ray is started on here: its data pipeline wants processors beside those of the actors, and waits for
# ever where there are none. They are logical ones.
_BESIDE = 2


class _Maker:
    """An actor: it loads the model once, and makes the parts that it is given."""

    def __init__(self, load: Callable[[], Work], out: str, batch_size: int) -> None:
        if not torch.cuda.is_available():
            torch.set_num_threads(1)
        self.work = load()
        self.folder = JobFolder.begin(Path(out), self.work.job, self.work.suffix)
        self.batch_size = batch_size

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        for number in batch["part"].tolist():
            # Of this shard the part is the only one: it is made if it is missing, and claimed while it is.
            for part in self.folder.missing(Shard(number, len(self.work.job))):
                self.work.make(self.folder, part, self.batch_size)
        return batch


def run_by_ray(
    work: Work,
    load: Callable[[], Work],
    out: str | Path,
    *,
    workers: int | None = None,
    batch_size: int = 64,
    on_gpu: bool = False,
    progress: Progress | None = None,
) -> JobFolder:
    """Make the parts of a job that are not there yet, by Ray Data.

    On a CPU an actor has one thread, and so the parts have the bytes of one process.

    Args:
        work: What to make; it is checked against the folder before Ray is started.
        load: Gives the same work in an actor, and can be pickled.
        out: The job's folder, seen by every machine.
        workers: Actors; one for each core, or GPU, of this machine when None. Where Ray runs already it is used; else
            it is started.
        batch_size: Images at a time.
        on_gpu: Whether an actor needs a GPU.
        progress: Called with the images that are done and with all of them, part by part.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is of another job.
        RuntimeError: Ray is not installed, or a part could not be made.
    """
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise RuntimeError(
            f'--engine ray needs Ray, which cannot be imported ({error}): pip install "fastdiff-ddpm[ray]"'
        ) from error
    batch_size = whole_number(spelt("batch_size"), batch_size, low=1)
    path = Path(out).absolute()
    folder = JobFolder.begin(path, work.job, work.suffix)
    folder.tidy()
    gpus = torch.cuda.device_count() if on_gpu else 0
    count = whole_number(spelt("workers"), workers or gpus or os.cpu_count() or 1, low=1)
    done = {part.number for part in folder.done() if folder.fault(part) is None}
    missing = [part.number for part in folder.job.parts() if part.number not in done]
    finished = sum(folder.job.part(number).num for number in done)
    if not missing:
        return folder
    started = not ray.is_initialized()
    # Its own account of the progress is a dozen lines every ten seconds.
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
    # Ray takes SIGTERM and keeps it after its end; it was the program's.
    before = signal.getsignal(signal.SIGTERM)
    try:
        if started:
            ray.init(num_cpus=count + _BESIDE, include_dashboard=False, log_to_driver=False, logging_level="error")
        made = ray.data.from_items(
            [{"part": number} for number in missing], override_num_blocks=len(missing)
        ).map_batches(
            _Maker,
            fn_constructor_args=(load, str(path), batch_size),
            batch_size=1,
            concurrency=min(count, len(missing)),
            num_cpus=1,
            num_gpus=1 if on_gpu else 0,
        )
        for batch in made.iter_batches(batch_size=None, prefetch_batches=0):
            finished += sum(folder.job.part(int(number)).num for number in batch["part"])
            if progress is not None:
                progress(finished, folder.job.num)
    except ray.exceptions.RayError as error:
        raise RuntimeError(f"Ray gave up: {error}") from error
    finally:
        if started:
            ray.shutdown()
            if before is not None and signal.getsignal(signal.SIGTERM) is not before:
                signal.signal(signal.SIGTERM, before)
    return folder
