"""Everything about fastdiff on a GPU, in one command and under eight minutes, from a bare checkout:

    python bench/gpu_suite.py [--only kernels --only unet] [--no-compile] [--budget 480]

Needs PyTorch 2.10 or newer with a GPU, Triton, and for the extension a C++ compiler and ninja; nothing is installed.
In order: build (the extension, if it is not there), tests (those that need a GPU), kernels, unet, sampling, training,
split (where an evaluation's time goes). No speed without its gate of accuracy. What does not fit in the budget is left
out, and the results say so. They are written as JSON and Markdown to bench/results/gpu-<card>; commit them unedited.

`--device cpu --quick` goes the same way on a small network without a GPU, to see that it runs; its times mean nothing,
and it writes only where --out says.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import checkout

SECTIONS = ("build", "tests", "kernels", "unet", "sampling", "training", "split")
# Seconds that a section may use at most; the tests are cut off, the others stop between rows.
LIMITS = {"build": 120, "tests": 150, "kernels": 120, "unet": 200, "sampling": 60, "training": 90, "split": 30}
RESULTS = checkout.ROOT / "bench" / "results"


def main() -> int:
    """Run the sections, write what they found, and return 0 where every gate and test was passed."""
    options = parse()
    started = time.monotonic()
    done: dict[str, dict[str, Any]] = {}

    def left() -> float:
        return options.budget - (time.monotonic() - started)

    for name in options.only or SECTIONS:
        begun = time.monotonic()
        if left() < 15:
            done[name] = {"status": "not run: the time was used up", "rows": []}
            continue
        try:
            done[name] = RUN[name](options, left)
        except Exception as error:
            # One broken section must not cost the others' results; the exit status tells.
            done[name] = {
                "status": f"broken: {type(error).__name__}: {error}",
                "rows": [],
                "trace": traceback.format_exc(),
            }
        done[name]["seconds"] = round(time.monotonic() - begun, 1)
        print(f"{name}: {done[name]['status']}, {done[name]['seconds']} s", flush=True)
        _free()
    everything = {"machine": machine(options), "quick": options.quick, "sections": done}
    text = to_markdown(everything)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(text)
    print(text)
    return 0 if all(is_good(section) for section in done.values()) else 1


def is_good(section: dict[str, Any]) -> bool:
    """Whether a section neither broke nor failed a gate."""
    if section["status"].startswith(("broken", "failed")):
        return False
    return all(row["gate"] != "failed" for row in section["rows"])


def parse() -> argparse.Namespace:
    """The command line, with the device and the place of the results settled."""
    import torch

    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", action="append", choices=SECTIONS, help="a section; may be given several times")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny shapes and few rounds, to see that it runs")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile's arms out")
    parser.add_argument("--budget", type=float, default=450, help="seconds in all (default 450)")
    parser.add_argument("--out", type=Path, help="results, without suffix")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU; `--device cpu --quick` shows whether the suite runs")
    if options.out is None and options.device == "cuda" and not options.quick:
        card = re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name().lower()).strip("-")
        options.out = RESULTS / f"gpu-{card}"
    options.compiled = not options.no_compile and not options.quick
    options.rounds = 3 if options.quick else 15
    return options


def run_build(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """Build the extension next to its package. The GPU needs none of it, so a failure is told and no more."""
    if importlib.util.find_spec("fastdiff._C") is not None:
        return {"status": "there already", "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace", f"--build-temp={folder}"]
        try:
            done = _run(command, min(LIMITS["build"], left() - 10))
        except subprocess.TimeoutExpired:
            return {
                "status": f"not built: cut off after {LIMITS['build']} s; the reference runs on the CPU",
                "rows": [],
            }
    if done.returncode:
        return {"status": "not built; the reference runs on the CPU", "rows": [], "output": done.stdout[-4000:]}
    return {"status": "built", "rows": []}


def run_tests(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """The tests in tests/gpu and, on the real compiler, those of the interpreter."""
    missing = [name for name in ("pytest", "hypothesis") if importlib.util.find_spec(name) is None]
    if missing:
        return {"status": f"not run: {', '.join(missing)} missing", "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        # The project's own configuration wants plugins that a bare machine lacks.
        settings = Path(folder) / "pytest.ini"
        settings.write_text(
            f"[pytest]\naddopts = --import-mode=importlib\npythonpath = {checkout.ROOT}/tests\n"
            "markers =\n    gpu: needs a CUDA device\n    slow: slow\n"
        )
        where = ["tests/gpu"] if options.device == "cpu" else ["tests/gpu", "tests/kernels/interpreter"]
        flags = ["-q", "-p", "checkout", "-p", "no:cacheprovider", "-c", str(settings), f"--rootdir={checkout.ROOT}"]
        try:
            done = _run([sys.executable, "-m", "pytest", *flags, *where], min(LIMITS["tests"], left() - 10))
        except subprocess.TimeoutExpired:
            return {"status": f"failed: cut off after {LIMITS['tests']} s", "rows": []}
    last = (done.stdout.strip().splitlines() or ["no output"])[-1]
    # Where all were skipped, or none collected, nothing was passed.
    good = "passed" if re.search(r"\d+ passed", last) else "not run"
    status = f"{good if done.returncode in (0, 5) else 'failed'}: {last}"
    return {"status": status, "rows": [], **({} if done.returncode == 0 else {"output": done.stdout[-8000:]})}


def run_kernels(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """Each op against PyTorch's own."""
    import torch
    from gpu_kernels import cases
    from gpu_measure import Clock, copy_gigabytes_per_second, measure

    device = torch.device(options.device)
    clock, bandwidths, rows = Clock(device), {}, []
    end = time.monotonic() + min(LIMITS["kernels"], left() - 10)
    for case in cases(device, options.quick):
        if time.monotonic() > end:
            rows.append({"name": case.name, "gate": "not run", "reason": "the time was used up"})
            continue
        if case.bytes_moved not in bandwidths:
            bandwidths[case.bytes_moved] = copy_gigabytes_per_second(device, case.bytes_moved)
        rows.append(measure(case, clock, options.rounds, bandwidths[case.bytes_moved]))
        del case
        _free()
    return {"status": _count(rows), "rows": rows}


def run_unet(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """One evaluation of the network of Ho et al."""
    from gpu_networks import unet

    networks, clock = _networks(options)
    end = time.monotonic() + min(LIMITS["unet"], left() - 10)
    rows = list(unet(networks, clock, options.rounds, options.compiled, lambda: end - time.monotonic()))
    return {"status": _count(rows), "rows": rows}


def run_sampling(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """A sampling loop."""
    from gpu_networks import sampling

    rows = list(sampling(*_networks(options), options.rounds))
    return {"status": _count(rows), "rows": rows}


def run_training(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """A training step."""
    from gpu_networks import training

    rows = list(training(*_networks(options), options.rounds, options.compiled and left() > 60))
    return {"status": _count(rows), "rows": rows}


def run_split(options: argparse.Namespace, left: Callable[[], float]) -> dict[str, Any]:
    """Where an evaluation's time goes."""
    from gpu_networks import split

    networks, _ = _networks(options)
    rows = [split(networks, batch) for batch in ((2,) if options.quick else (16, 256))]
    return {"status": f"{len(rows)} evaluations", "rows": rows}


RUN = {
    "build": run_build,
    "tests": run_tests,
    "kernels": run_kernels,
    "unet": run_unet,
    "sampling": run_sampling,
    "training": run_training,
    "split": run_split,
}


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Card, driver, versions and commit: what a figure means nothing without."""
    import torch

    versions = {"python": platform.python_version(), "cuda": torch.version.cuda}
    for name in ("torch", "triton", "diffusers", "numpy"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    on_gpu = options.device == "cuda"
    query = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "No GPU: a dry run on the CPU, its times mean nothing",
        "driver, power limit, clock": _output(query) if on_gpu else None,
        "multiprocessors": torch.cuda.get_device_properties(0).multi_processor_count if on_gpu else None,
        "versions": versions,
        "commit": _output(["git", "-C", str(checkout.ROOT), "describe", "--always", "--dirty"]),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def to_markdown(everything: dict[str, Any]) -> str:
    """A table per section."""
    about = everything["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [f"{about['device']}; {about['driver, power limit, clock']}; commit {about['commit']}; {versions}.", ""]
    lines += ["Medians of interleaved calls; ratios are the peer's time over fastdiff's."]
    for name, section in everything["sections"].items():
        lines += ["", f"## {name}: {section['status']} ({section.get('seconds', 0)} s)"]
        rows = section["rows"]
        if name == "split":
            for row in rows:
                lines += [
                    "",
                    f"{row['name']}: {row['total_us']:.0f} us",
                    "",
                    *_table(("kernel", "calls", "us", "share")),
                ]
                lines += [
                    _cells(k["kernel"], k["calls"], f"{k['us']:.1f}", f"{k['share']:.1%}") for k in row["kernels"]
                ]
        elif rows:
            heads = ("what", "type", "gate", "us per arm", "times faster than", "GB/s", "of copy", "TFLOP/s")
            lines += ["", *_table(heads), *map(_line, rows)]
            peers = dict.fromkeys(row["peer"] for row in rows if "peer" in row)
            lines += ["", *(f"Peer: {peer}." for peer in peers)] if peers else []
    return "\n".join(lines) + "\n"


def _table(heads: tuple[str, ...]) -> list[str]:
    return [_cells(*heads), "|" + "---|" * len(heads)]


def _cells(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _line(row: dict[str, Any]) -> str:
    times = ", ".join(f"{arm} {us:.1f}" for arm, us in row.get("us", {}).items())
    ratios = ", ".join(f"{arm} {ratio:.2f}x" for arm, ratio in row.get("times_faster_than", {}).items())
    cells = [row["name"], row.get("dtype", ""), row["gate"], times or row.get("reason", ""), ratios]
    cells += [f"{row[key]:{kind}}" if key in row else "" for key, kind in FIGURES.items()]
    return _cells(*cells)


FIGURES = {"gigabytes_per_second": ".0f", "fraction_of_copy": ".0%", "teraflops": ".1f"}


def _networks(options: argparse.Namespace) -> Any:
    import torch
    from gpu_measure import Clock
    from gpu_networks import Networks

    device = torch.device(options.device)
    # The peers' best settings.
    torch.backends.cudnn.benchmark = True
    return Networks(device, options.quick), Clock(device)


def _count(rows: list[dict[str, Any]]) -> str:
    kinds = [row["gate"] for row in rows]
    return ", ".join(f"{kinds.count(kind)} {kind}" for kind in dict.fromkeys(kinds)) or "nothing"


def _run(command: list[str], timeout: float) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(checkout.ROOT / "bench"), str(checkout.ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        command,
        cwd=checkout.ROOT,
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=max(timeout, 1),
        check=False,
    )


def _output(command: list[str]) -> str | None:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    sys.exit(main())
