"""What tests compile: kept in build/ under a mark of all that went into it, and made by one process at a time."""

import fcntl
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

ROOT = Path(__file__).parents[2]
PLACE = ROOT / "build" / "tests"


def built(name: str, command: Callable[[Path], list[str]], sources: Iterable[Path]) -> Path:
    """The file that a command makes, which is given where to write; without a word, or the test fails."""
    contents = b"".join(path.read_bytes() for path in sorted(sources))
    environment = [os.environ.get(variable) for variable in ("CUDA_HOME", "CUDA_PATH")]
    mark = hashlib.sha256(contents + repr((command(Path(name)), environment)).encode()).hexdigest()[:16]
    place = PLACE / f"{mark}-{name}"
    PLACE.mkdir(parents=True, exist_ok=True)
    with (PLACE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not place.is_file():
            with tempfile.TemporaryDirectory(dir=PLACE) as folder:
                made = Path(folder) / name
                done = subprocess.run(command(made), capture_output=True, text=True, check=False)
                assert (done.returncode, done.stderr) == (0, "")
                made.rename(place)
    return place
