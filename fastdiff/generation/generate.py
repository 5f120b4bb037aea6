"""Samples of a model in parts: a function of (model, table, seed, labels, id), whoever makes which part."""

from __future__ import annotations

import dataclasses
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fastdiff.files.checkpoint import versions
from fastdiff.files.data import DataScaling
from fastdiff.files.images import to_uint8
from fastdiff.generation import formats
from fastdiff.generation.folder import JobFolder
from fastdiff.generation.formats import Format, check_format
from fastdiff.generation.job import Job, Part
from fastdiff.generation.running import Progress, run
from fastdiff.generation.shards import Shard
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import check_seed
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.labels import Classes
from fastdiff.sampling.tables import Sampler, table_of

__all__ = ["Mismatch", "Request", "SampledModel", "Samples", "gather", "generate", "precision_of", "verify"]

LAST_ID = 2**63 - 1


class SampledModel(Protocol):
    """What is asked of a model; `fastdiff.Pipeline` is one."""

    unet: Any
    diffusion: Diffusion
    scaling: DataScaling

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of its images."""
        ...

    @property
    def classes(self) -> Classes:
        """Its classes."""
        ...

    def sample(self, num: int = 1, **options: Any) -> Tensor:
        """Images in [-1, 1], [num, C, H, W]; see `fastdiff.Pipeline.sample`."""
        ...


@dataclass(frozen=True)
class Request:
    """What is to be sampled.

    Attributes:
        num: Images, of the ids 0..num-1.
        sampler: See `fastdiff.Pipeline.sample`.
        steps: Network evaluations an image; None for the sampler's own number.
        options: Of the sampler.
        seed: In [0, 2^64).
        labels: Of a network with classes: numbers or names, taken in turn by the ids; or an array int64 [>= num], one
            for each id. None takes all classes in turn.
        guidance: Scale of classifier-free guidance; None for none.
        null_label: The null class, where the model does not say.
        format: How a part is kept; see `fastdiff.generation.formats`.
        part_size: Images of a part. It decides how finely the work can be shared out, and how much a kill loses.

    Raises:
        ValueError: a number out of range.
    """

    num: int
    sampler: Sampler = "ddim"
    steps: int | None = None
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    labels: Sequence[int | str] | NDArray[np.int64] | None = None
    guidance: float | None = None
    null_label: int | str | None = None
    format: str = "npz"
    part_size: int = 512

    def __post_init__(self) -> None:
        whole_number(spelt("num"), self.num, low=1, high=LAST_ID, strict=True)
        whole_number(spelt("part_size"), self.part_size, low=1, strict=True)
        check_seed(self.seed)


@dataclass(frozen=True, eq=False)
class Samples:
    """A request, made fit for a model.

    Attributes:
        model: What is sampled from.
        request: As above.
        table: The sampler.
        format: Of the parts.
        labels: Taken in turn, or by id; None for a network without classes.
        job: As the manifest says it.
    """

    model: SampledModel
    request: Request
    table: CoefficientTable
    format: Format
    labels: NDArray[np.int64] | None
    job: Job

    @classmethod
    def of(cls, model: SampledModel, request: Request) -> Samples:
        """Check a request against a model.

        Raises:
            ValueError: they do not fit.
        """
        table = table_of(request.sampler, model.diffusion, request.steps, request.options)
        kind = check_format(request.format, model.image_shape[0])
        labels = _labels(model.classes, request)
        if request.guidance is not None:
            model.classes.null_of(request.null_label)
        about: dict[str, Any] = {
            "weights": digest(model.unet),
            "shape": list(model.image_shape),
            "table": table.to_dict(),
            "seed": request.seed,
            "format": kind,
        } | precision_of(model)
        if labels is not None:
            about["labels"] = labels.tolist() if len(labels) <= 1000 else _digest_of(labels[: request.num])
            about["guidance"] = request.guidance
            about["null_label"] = None if request.guidance is None else model.classes.null_of(request.null_label)
        job = Job("generate", about, request.num, request.part_size, versions())
        return cls(model, request, table, kind, labels, job)

    @property
    def suffix(self) -> str:
        """Of a part's file."""
        return formats.SUFFIXES[self.format]

    def labels_of(self, ids: Sequence[int]) -> NDArray[np.int64] | None:
        """The labels of ids."""
        return None if self.labels is None else self.labels[np.asarray(ids) % len(self.labels)]

    def images(self, ids: Sequence[int]) -> NDArray[np.uint8]:
        """Samples of these ids, uint8 [n, H, W, C]."""
        labels = self.labels_of(ids)
        x = self.model.sample(
            len(ids),
            sampler=self.table,
            seed=self.request.seed,
            sample_ids=list(ids),
            labels=None if labels is None else labels.tolist(),
            guidance=self.request.guidance,
            null_label=self.request.null_label,
        )
        return np.ascontiguousarray(to_uint8(x.cpu()).permute(0, 2, 3, 1).numpy())

    def make(self, folder: JobFolder, part: Part, batch_size: int, tell: Callable[[int], None] | None = None) -> None:
        """Sample a part and write it."""
        began = time.monotonic()
        found = []
        for first in range(0, part.num, batch_size):
            ids = part.ids[first : first + batch_size]
            found.append(self.images(ids))
            if tell is not None:
                tell(len(ids))
        seconds = round(time.monotonic() - began, 3)
        batch = (part.ids, np.concatenate(found), self.labels_of(part.ids))
        about = {"seconds": seconds, "versions": versions()}
        folder.keep(part, lambda path: formats.write(path, self.format, batch), about)


def precision_of(model: Any) -> dict[str, str]:
    """What a job says of a model's precision and memory: what was chosen, which is nothing as a rule and before."""
    chosen = {"precision": getattr(model, "precision", None), "memory": getattr(model, "memory", None)}
    return {name: value for name, value in chosen.items() if value not in (None, "normal")}


def generate(
    model: SampledModel,
    out: str | Path,
    request: Request,
    *,
    shard: Shard | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> JobFolder:
    """Sample the parts of a job that are not there yet.

    An image is a function of (model, table, seed, label, id). So processes that share a job need not speak to each
    other, what one was killed in is made again by the same call, and in the C++ engine the bytes of the parts are those
    of one process, whatever the shards, the threads and the batch size.

    Args:
        model: For example a `fastdiff.Pipeline`.
        out: The job's folder: manifest.json and parts/.
        request: What to sample.
        shard: Which parts are this process's; `Shard.from_environment()` when None.
        batch_size: Images at a time; it changes speed and memory, and no bit of the engine's images.
        progress: Called with the images of this shard that are done, and with all of them.

    Returns:
        The folder; `fastdiff.generation.generate.gather` puts its parts together.

    Raises:
        ValueError: the folder is of another job, or model and request do not fit.
        RuntimeError: a part could not be written.
    """
    return run(Samples.of(model, request), Path(out), shard, batch_size, progress)


def gather(folder: JobFolder, out: str | Path) -> Path:
    """Put the parts of a finished job together into one .npz, .zip or .parquet, or into a folder of PNGs.

    Raises:
        ValueError: parts are missing or damaged, or the name is none of these.
    """
    done = folder.done()
    if len(done) < len(folder.job):
        raise ValueError(f"{folder.path} has {len(done):,} of {len(folder.job):,} parts: generate the others first")
    kind = folder.job.about["format"]

    def parts() -> Any:
        for part in done:
            fault = folder.fault(part)
            if fault is not None:
                raise ValueError(f"{folder.file(part)}: {fault}; generate it again")
            yield part.ids, *formats.read(folder.file(part), kind)

    formats.gather(Path(out), parts(), folder.job.num)
    return Path(out)


@dataclass(frozen=True)
class Mismatch:
    """An image that is not what it should be.

    Attributes:
        id: Its id.
        pixels: Values that differ.
        largest: The largest difference, of 255.
    """

    id: int
    pixels: int
    largest: int


def verify(model: SampledModel, out: str | Path, request: Request, ids: Sequence[int]) -> list[Mismatch]:
    """Sample some ids again, and compare with what lies in the job's folder.

    Raises:
        ValueError: an id outside of the job, or one whose part is missing or damaged.
    """
    work = Samples.of(model, request)
    folder = JobFolder.begin(Path(out), work.job, work.suffix)
    by_part: dict[int, list[int]] = {}
    for number in ids:
        whole_number("an id", number, low=0, high=work.job.num - 1)
        by_part.setdefault(number // work.job.part_size, []).append(number)
    found = []
    for place, numbers in sorted(by_part.items()):
        part = work.job.part(place)
        fault = folder.fault(part)
        if fault is not None:
            raise ValueError(f"{folder.file(part)}: {fault}; generate it first")
        stored = formats.read(folder.file(part), work.format)[0]
        for number in numbers:
            difference = np.abs(stored[number - part.first].astype(np.int16) - work.images([number])[0])
            if difference.any():
                found.append(Mismatch(number, int((difference != 0).sum()), int(difference.max())))
    return found


def digest(network: nn.Module) -> str:
    """A fingerprint of a network's weights: SHA-256 over names and float32 values."""
    found = hashlib.sha256()
    for name, value in network.state_dict().items():
        found.update(name.encode())
        array: Any = value.detach().cpu().to(torch.float32).contiguous().numpy()
        found.update(array)
    return found.hexdigest()


def _labels(classes: Classes, request: Request) -> NDArray[np.int64] | None:
    """The labels that ids take in turn, or one for each."""
    given = request.labels
    if classes.num is None:
        if given is not None:
            raise ValueError(f"this network has no classes: leave out {spelt('labels')}")
        return None
    if given is None:
        return np.arange(classes.num_real)
    if isinstance(given, np.ndarray):
        if given.ndim != 1 or given.dtype.kind not in "iu":
            raise ValueError(f"{spelt('labels')} must be whole numbers [N], got {given.dtype} {list(given.shape)}")
        if len(given) < request.num:
            raise ValueError(
                f"{spelt('labels')} are {len(given):,} and do not cover the ids 0..{request.num - 1:,}: give one for "
                "each image, or a list that is taken in turn"
            )
        if int(given.min()) < 0 or int(given.max()) >= classes.num:
            low, high = int(given.min()), int(given.max())
            raise ValueError(f"{spelt('labels')} must be in 0..{classes.num - 1}, got {low}..{high}")
        return given[: request.num].astype(np.int64)
    if len(given) == 0:
        raise ValueError(f"{spelt('labels')} must name at least one class")
    return np.array([classes.number(str(label), spelt("labels")) for label in given], dtype=np.int64)


def _digest_of(labels: NDArray[np.int64]) -> str:
    return "sha256 " + hashlib.sha256(np.ascontiguousarray(labels, dtype="<i8").tobytes()).hexdigest()
