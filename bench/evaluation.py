"""The time and memory of `fastdiff evaluate` for 50,000 images of 32x32 by the built-in features.

`python bench/evaluation.py` writes bench/results/evaluation.json and .md; `--quick` only shows that it runs. It
measures a command of a process of its own, whose peak memory is reported.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from harness import machine

RESULTS = Path(__file__).parent / "results" / "evaluation"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small, and nothing is written")
    options = parser.parse_args()
    num, runs = (500, 1) if options.quick else (50_000, 2)
    with tempfile.TemporaryDirectory() as folder:
        for name in ("samples", "reference"):
            _write(Path(folder) / f"{name}.npz", num, seed=len(name))
        seconds = min(_evaluate(Path(folder)) for _ in range(runs))
    # Of all children the largest; Linux counts in KiB.
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    result = {"images": num, "size": 32, "seconds": seconds, "peak_bytes": peak, "machine": machine()}
    text = _markdown(result)
    print(text)
    if not options.quick:
        RESULTS.with_suffix(".json").write_text(json.dumps(result, indent=1) + "\n")
        RESULTS.with_suffix(".md").write_text(text)
    return 0


def _write(path: Path, num: int, seed: int) -> None:
    """Smooth colour images: features of white noise would all be the same."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8)
    np.savez(path, small.repeat(8, axis=1).repeat(8, axis=2))


def _evaluate(folder: Path) -> float:
    command = [
        sys.executable,
        "-m",
        "fastdiff",
        "evaluate",
        "samples.npz",
        "reference.npz",
        "--out",
        "out",
        "--overwrite",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    began = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def _markdown(result: dict[str, object]) -> str:
    m = result["machine"]
    assert isinstance(m, dict)
    return (
        f"{m['processor']}, {m['cores']} cores, load {m['load']}, commit {m['commit']}.\n\n"
        f"`fastdiff evaluate samples.npz reference.npz --out out`, {result['images']:,} images of 32x32 in colour, "
        "the built-in features; fid on all of them, kid and prdc on 10,000 of each: "
        f"{result['seconds']:.1f} s, {float(str(result['peak_bytes'])) / 2**20:,.0f} MiB, the start of Python and "
        "the figure included.\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
