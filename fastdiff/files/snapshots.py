"""Averages of a run's weights at chosen steps, `snapshots/step_00001000.safetensors` of its folder.

Each file holds all averages that were tracked, and says in its header at which step, of which widths, in which run, and
since when: what came before that step counts as if the weights had been those at it. Checksums are as those of models.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from fastdiff.files.atomic import atomic_path, remove_stale
from fastdiff.files.contents import checksum_of_tensors, describing
from fastdiff.files.weights import opened, reason_of

__all__ = ["Snapshot", "drop_snapshots", "list_snapshots", "read_snapshot", "write_snapshot"]

SNAPSHOTS = "snapshots"
_HEADER = "fastdiff"


@dataclass(frozen=True)
class Snapshot:
    """What a snapshot says of itself.

    Attributes:
        path: The file.
        step: Steps taken.
        widths: Of the averages in it.
        since: Steps that were taken when the averages began.
        run: Whose it is; see `fastdiff.training.resume.identity`.
        checksum: Of its tensors.
    """

    path: Path
    step: int
    widths: tuple[float, ...]
    since: int
    run: str
    checksum: str

    def tensors(self) -> dict[str, Tensor]:
        """All averages: the tensors of a width under `fastdiff.files.weights.average_prefix` and the parameters' names.

        Raises:
            ValueError: the file is damaged.
        """
        with opened(self.path) as file:
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if checksum_of_tensors(found) != self.checksum:
            raise ValueError(f"{self.path} is damaged: its checksum does not fit; delete it, and the others are used")
        return found


def write_snapshot(
    run_folder: str | Path,
    tensors: Mapping[str, Tensor],
    *,
    step: int,
    widths: tuple[float, ...],
    since: int,
    run: str,
) -> Path:
    """Write the averages of a step, whole or not at all; one of the same step is replaced.

    Args:
        run_folder: Of the training.
        tensors: See `Snapshot.tensors`.
        step: See `Snapshot`, as for the others.
        widths: Of the averages.
        since: Steps that were taken when they began.
        run: Whose they are.

    Raises:
        RuntimeError: it could not be written.
    """
    path = Path(run_folder) / SNAPSHOTS / f"step_{step:08d}.safetensors"
    said = {"step": step, "widths": list(widths), "since": since, "run": run, "checksum": checksum_of_tensors(tensors)}
    try:
        with atomic_path(path, sync=True) as partial:
            mode = partial.stat().st_mode & 0o777
            # One entry: the order of several, and so the file, would change from run to run.
            header = {_HEADER: json.dumps(said)}
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial, header)
            # safetensors makes files that only their owner may read.
            partial.chmod(mode)
    except (OSError, SafetensorError) as error:
        raise RuntimeError(
            f"could not write the averages to {path}: {reason_of(error)}; checkpoints are intact"
        ) from error
    return path


def list_snapshots(run_folder: str | Path) -> list[tuple[int, Path]]:
    """Step and file of each snapshot of a run, oldest first."""
    found = []
    for path in Path(run_folder, SNAPSHOTS).glob("step_*.safetensors"):
        match = re.fullmatch(r"step_(\d+)\.safetensors", path.name)
        if match and path.is_file():
            found.append((int(match[1]), path))
    return sorted(found)


def drop_snapshots(run_folder: str | Path, *, after: int) -> None:
    """Delete the snapshots of later steps, which a run that goes on writes again, and what a kill left of others."""
    remove_stale(Path(run_folder, SNAPSHOTS), "step_*")
    for step, path in list_snapshots(run_folder):
        if step > after:
            path.unlink()


def read_snapshot(path: Path) -> Snapshot:
    """What a snapshot says of itself; its tensors are not read.

    Raises:
        ValueError: the file is damaged, or is none of ours.
    """
    with opened(path) as file:
        header = (file.metadata() or {}).get(_HEADER)
    if header is None:
        raise ValueError(f"{path} is no snapshot of a training of fastdiff: its header does not say so")
    with describing(path):
        said: dict[str, Any] = json.loads(header)
        return Snapshot(
            path,
            int(said["step"]),
            tuple(float(width) for width in said["widths"]),
            int(said["since"]),
            str(said["run"]),
            str(said["checksum"]),
        )
