"""Scores of a data set in parts: bits per dimension, or encodings, each a function of (model, method, seed, image)."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastdiff.data.source import ImageSource
from fastdiff.files.atomic import atomic_path
from fastdiff.files.checkpoint import versions
from fastdiff.files.scaling import DataScaling
from fastdiff.generation.folder import JobFolder
from fastdiff.generation.generate import digest, precision_of
from fastdiff.generation.job import Job, Part
from fastdiff.generation.running import Progress, run
from fastdiff.generation.shards import Shard
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import nearest_name, whole_number
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.noise import check_seed

__all__ = ["ScoreRequest", "ScoredModel", "Scores", "check_scorable", "read_scores", "score"]

Method = Literal["bound", "ode", "iwae", "encode"]

# What is kept of a score, where it has it: one number an image, or rows.
_KEPT = ("prior", "decoder", "kl", "sampling_error", "error_estimate", "probe_error", "steps", "log_weights")


class ScoredModel(Protocol):
    """What is asked of a model; `fastdiff.Pipeline` is one."""

    unet: Any
    diffusion: Diffusion
    scaling: DataScaling

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """[C, H, W] of its images."""
        ...

    def likelihood(self, x: Tensor, method: Any = "bound", **options: Any) -> Any:
        """See `fastdiff.Pipeline.likelihood`."""
        ...

    def encode(self, x: Tensor, **options: Any) -> Tensor:
        """See `fastdiff.Pipeline.encode`."""
        ...


@dataclass(frozen=True)
class ScoreRequest:
    """What is to be scored, and how.

    Attributes:
        method: "bound", "ode" or "iwae", in bits per dimension; or "encode", the noise that the probability flow maps
            an image to.
        options: Of the method, such as probes=4, or of `encode`, such as steps=50.
        seed: In [0, 2^64).
        terms: With "bound", keep every term as well, [n, T].
        part_size: Images of a part.

    Raises:
        ValueError: an unknown method, or a number out of range.
    """

    method: Method = "bound"
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    seed: int = 0
    terms: bool = False
    part_size: int = 512

    def __post_init__(self) -> None:
        if self.method not in get_args(Method):
            raise ValueError(
                f"unknown {spelt('method')} {self.method!r}: {nearest_name(self.method, get_args(Method))}"
            )
        if self.terms and self.method != "bound":
            raise ValueError(f"{spelt('terms')} are the bound's, and {spelt('method')} is {self.method!r}")
        whole_number(spelt("part_size"), self.part_size, low=1, strict=True)
        check_seed(self.seed)
        taken = sorted({"seed", "sample_ids", "batch_size"} & set(self.options))
        if taken:
            raise ValueError(f"{taken[0]} is no option of the method here: it is given beside it")


@dataclass(frozen=True, eq=False)
class Scores:
    """A request, made fit for a model and its data.

    Attributes:
        model: What scores.
        data: What is scored.
        request: As above.
        job: As the manifest says it.
    """

    model: ScoredModel
    data: ImageSource
    request: ScoreRequest
    job: Job

    suffix = ".npz"

    @classmethod
    def of(cls, model: ScoredModel, data: ImageSource, request: ScoreRequest) -> Scores:
        """Check a request against a model and data.

        Raises:
            ValueError: they do not fit.
        """
        check_scorable(model, data)
        with_labels = model.unet.config.num_classes is not None
        described = {key: value for key, value in data.describe(with_labels=with_labels).items() if key != "source"}
        about = {
            "weights": digest(model.unet),
            "diffusion": model.diffusion.to_dict(),
            "data": described,
            "method": request.method,
            "options": dict(request.options),
            "seed": request.seed,
            "terms": request.terms,
        } | precision_of(model)
        return cls(model, data, request, Job("score", about, len(data), request.part_size, versions()))

    def make(self, folder: JobFolder, part: Part, batch_size: int, tell: Callable[[int], None] | None = None) -> None:
        """Score a part and write it."""
        began = time.monotonic()
        found: dict[str, list[NDArray[Any]]] = {}
        for first in range(0, part.num, batch_size):
            ids = np.asarray(part.ids[first : first + batch_size])
            for name, values in self.values(ids).items():
                found.setdefault(name, []).append(values)
            if tell is not None:
                tell(len(ids))
        arrays = {"ids": np.asarray(part.ids)} | {name: np.concatenate(values) for name, values in found.items()}
        about = {"seconds": round(time.monotonic() - began, 3), "versions": versions()}
        folder.keep(part, lambda path: _write(path, arrays), about)

    def values(self, ids: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What is kept of the scores of some images."""
        request, model = self.request, self.model
        place = next(model.unet.parameters()).device
        x = self.data.scaling.to_model(self.data.read(ids)).to(place)
        labels = None
        if model.unet.config.num_classes is not None and self.data.labels is not None:
            labels = self.data.labels[torch.from_numpy(ids).to(self.data.labels.device)].to(place)
        if request.method == "encode":
            latent = model.encode(x, labels=labels, **request.options)
            return {"latents": latent.cpu().numpy()}
        said = model.likelihood(
            x, request.method, labels=labels, seed=request.seed, sample_ids=ids.tolist(), **request.options
        )
        values = {"bits_per_dim": said.total}
        values |= {name: getattr(said, name) for name in _KEPT if hasattr(said, name)}
        if request.terms:
            values |= {"terms": said.terms, "x0_mse": said.x0_mse}
        return {name: value.cpu().numpy() for name, value in values.items()}


def score(
    model: ScoredModel,
    data: ImageSource,
    out: str | Path,
    request: ScoreRequest | None = None,
    *,
    shard: Shard | None = None,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> JobFolder:
    """Score the parts of a data set that are not scored yet.

    Image i is scored with the noise of (seed, i). So processes that share a job need not speak to each other, and what
    one was killed in is scored again by the same call. `fastdiff.likelihood.merge` gives the mean of any set of parts.

    Args:
        model: For example a `fastdiff.Pipeline`.
        data: The images; see `fastdiff.data.open_images`.
        out: The job's folder: manifest.json and parts/, each a .npz with "ids", and "bits_per_dim" float64 or "latents"
            float32 [n, C, H, W].
        request: How to score; the bound when None.
        shard: Which parts are this process's; `Shard.from_environment()` when None.
        batch_size: Images at a time.
        progress: Called with the images of this shard that are done, and with all of them.

    Returns:
        The folder.

    Raises:
        ValueError: the folder is of another job, or model and data do not fit.
        RuntimeError: a part could not be written.
    """
    return run(Scores.of(model, data, request or ScoreRequest()), Path(out), shard, batch_size, progress)


def read_scores(folder: JobFolder, name: str = "bits_per_dim") -> tuple[NDArray[np.int64], NDArray[Any]]:
    """Ids [n] and values [n, ...] of the parts that are done, in the order of the ids.

    Raises:
        ValueError: no part is done, one is damaged, or nothing of that name was kept.
    """
    ids, values = [], []
    for part in folder.done():
        fault = folder.fault(part)
        if fault is not None:
            raise ValueError(f"{folder.file(part)}: {fault}; score it again")
        with np.load(folder.file(part), allow_pickle=False) as archive:
            if name not in archive:
                raise ValueError(f"{folder.file(part)} holds no {name!r}; it has {', '.join(archive)}")
            ids.append(archive["ids"])
            values.append(archive[name])
    if not ids:
        raise ValueError(f"{folder.path} has no part yet")
    return np.concatenate(ids), np.concatenate(values)


def _write(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    with atomic_path(path, sync=True) as partial, partial.open("r+b") as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]


def check_scorable(model: ScoredModel, data: ImageSource) -> None:
    """Raise ValueError unless a model can score these images: their size, their values, and labels for its classes."""
    shape, levels = model.image_shape, model.scaling.levels
    if data.shape != shape:
        ours, theirs = ("x".join(map(str, part)) for part in (shape, data.shape))
        raise ValueError(
            f"the model was trained on images of {ours} (channels x height x width), {data.source} has {theirs}: "
            "for a folder, --size and --channels convert them"
        )
    if data.scaling.levels != levels:
        ours, theirs = ("continuous values" if n is None else f"{n} values" for n in (levels, data.scaling.levels))
        raise ValueError(
            f"the model was trained on pixels of {ours}, those of {data.source} have {theirs}: bits/dim count values, "
            "so the two must agree"
        )
    if model.unet.config.num_classes is not None and data.labels is None:
        raise ValueError(f"the network has classes, and {data.source} has no labels")
