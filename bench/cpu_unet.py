"""The CPU engine against the engines that one could pick instead: `make bench-cpu`.

    python bench/cpu_unet.py [--only ho-cifar10] [--batches 1,8] [--engines "engine,openvino bf16"]
        [--conditions quiet] [--rounds 9] [--add]

Each engine lives in a process of its own, built from the same weights, and is stopped while another has its turn, so
that threads which spin cannot disturb it. They take turns, call by call; least and median times, and the error relative
to float64. Conditions: two threads on a quiet machine, one thread, and two threads beside 1, 2 and 4 processes that
each keep a processor busy. There the median is compared with the fair share: the quiet time, times (threads + busy) /
processors. Networks that would fill the memory if all engines held them race in pairs.

Writes bench/results/cpu_unet.json and .md; with --add what is measured joins what stands there, case by case and engine
by engine, with the machine and commit of its own. Engines that are not installed are left out and named; `pip install
-e ".[peers]"` brings them.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import itertools
import json
import math
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cpu_profile
import numpy as np
import torch
from cpu_peers import ENGINES, SIXTEEN_BITS, reference
from harness import machine

import fastdiff as fd

RESULTS = Path(__file__).parent / "results" / "cpu_unet"
WORKER = Path(__file__).parent / "cpu_worker.py"
CASES = [("ho-cifar10", 1), ("ho-cifar10", 8), ("digits", 1), ("digits", 64), ("ho-cifar10", 4), ("ho-cifar10", 16)]
CASES += [("iddpm-imagenet64", 1), ("adm-imagenet64", 1)]
# Beside others, and with one thread, the cases and engines that say most.
FEW = [("ho-cifar10", 1), ("ho-cifar10", 8)]
BUSY = [("ho-cifar10", 1)]
CONDITIONS = {"quiet": (2, 0), "one thread": (1, 0), "1 busy": (2, 1), "2 busy": (2, 2), "4 busy": (2, 4)}
BESIDE = ("engine", "engine bf16", "eager nhwc", "openvino", "openvino bf16")
# Weights beyond which engines race in pairs: parameters.
LARGE = 200_000_000
MODULES = {
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "openvino bf16": "openvino",
    "mnn": "MNN",
    "ncnn": "pnnx",
}


class Worker:
    """A process with one engine, stopped while it is not asked."""

    def __init__(self, engine: str, preset: str, threads: int) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
        command = [sys.executable, str(WORKER), engine, preset, str(threads)]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )

    def ask(self, **command: Any) -> dict[str, Any]:
        """The answer to a command; the process runs meanwhile and no longer."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.send_signal(signal.SIGCONT)
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        self.process.send_signal(signal.SIGSTOP)
        if not line:
            return {"failed": f"the process ended with {self.process.wait()}"}
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that each keep a processor busy."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in others:
            process.kill()
            process.wait()


def installed(engines: Sequence[str]) -> tuple[list[str], list[str]]:
    """Which of them are here, and which are missing."""
    here = [name for name in engines if name not in MODULES or importlib.util.find_spec(MODULES[name]) is not None]
    return here, [name for name in engines if name not in here]


def measure(preset: str, batch: int, engines: Sequence[str], condition: str, rounds: int) -> dict[str, Any]:
    """Least and median milliseconds of each engine, in turns, with its error and the seconds it took to build."""
    threads, others = CONDITIONS[condition]
    found: dict[str, Any] = {"preset": preset, "batch": batch, "condition": condition, "engines": {}}
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in fd.UNet(fd.UNetConfig.preset(preset)).parameters())
    rivals = [name for name in engines if name != "engine"]
    groups = [list(engines)] if size < LARGE or not rivals else [["engine", rival] for rival in rivals]
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        np.save(file, reference(preset, batch))
        file.flush()
        for group in groups:
            _race_group(group, found, file.name, threads, others, rounds)
    return found


def _race_group(
    group: Sequence[str], found: dict[str, Any], expected: str, threads: int, others: int, rounds: int
) -> None:
    workers = {name: Worker(name, found["preset"], threads) for name in group}
    try:
        built = {name: worker.ask(prepare=found["batch"], expected=expected) for name, worker in workers.items()}
        for name, answer in built.items():
            if "failed" in answer:
                found["engines"][name] = answer
        racing = {name: worker for name, worker in workers.items() if "failed" not in built[name]}
        quick = {name: max(1, min(100, int(0.1 / worker.ask(run=1)["seconds"][0]))) for name, worker in racing.items()}
        seconds: dict[str, list[float]] = {name: [] for name in racing}
        with busy(others):
            for _ in range(rounds):
                for name, worker in racing.items():
                    # The first call after a pause finds its caches and threads cold.
                    seconds[name] += worker.ask(run=quick[name] + 1)["seconds"][1:]
        for name, values in seconds.items():
            one = {"ms": 1e3 * statistics.median(values), "least_ms": 1e3 * min(values)}
            one |= {"error": built[name]["error"], "build_seconds": built[name]["seconds"]}
            known = found["engines"].setdefault(name, one)
            if name != "engine" and "engine" in seconds:
                ours = seconds["engine"]
                known["times_faster"] = statistics.median(values) / statistics.median(ours)
                known["least_times_faster"] = min(values) / min(ours)
    finally:
        for worker in workers.values():
            worker.close()


def cases_of(only: str, conditions: Sequence[str], batches: Sequence[int] = ()) -> list[tuple[str, int, str]]:
    """What is measured: network, batch and condition; of all batch sizes, or of some."""
    chosen = {"quiet": CASES, "one thread": FEW}
    found = [(*case, condition) for condition in conditions for case in chosen.get(condition, BUSY)]
    return [case for case in found if only in case[0] and (not batches or case[1] in batches)]


def add(results: list[dict[str, Any]], found: dict[str, Any]) -> None:
    """A result to those there are: to that of its case, whose engines stay what they were, or as a new one."""
    names = ("preset", "batch", "condition")
    for result in results:
        if all(result[name] == found[name] for name in names):
            result["engines"] = found["engines"] | result["engines"]
            return
    of_its_condition = [n for n, result in enumerate(results) if result["condition"] == found["condition"]]
    results.insert(of_its_condition[-1] + 1 if of_its_condition else len(results), found)


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--engines", default=",".join(ENGINES), help="names, with commas between them")
    parser.add_argument("--conditions", default=",".join(CONDITIONS), help="names, with commas between them")
    parser.add_argument("--batches", default="", help="batch sizes, with commas between them; all, if left out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--add", action="store_true", help="to the results that there are, without the splits")
    parser.add_argument("--no-split", action="store_true", help="leave out where the engine's own time goes")
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    engines, missing = installed(options.engines.split(","))
    batches = [int(number) for number in options.batches.split(",") if number]
    cases = cases_of(options.only, options.conditions.split(","), batches)
    results: list[dict[str, Any]] = []
    everything: dict[str, Any] = {"machine": machine(), "results": results, "missing": missing}
    if options.add:
        everything = json.loads(options.out.with_suffix(".json").read_text())
        results = everything["results"]
    elif not options.no_split:
        with torch.no_grad():
            quiet = [case[:2] for case in cases if case[2] == "quiet"]
            everything["splits"] = [cpu_profile.split_of(preset, batch) for preset, batch in quiet]
            everything["two_threads"] = cpu_profile.scaling("ho-cifar10", 8, options.rounds)
        everything["peak_mib"] = {
            arm: cpu_profile.peak_memory(arm, "ho-cifar10", 16) for arm in ("engine", "diffusers")
        }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    for preset, batch, condition in cases:
        taking_part = engines if condition == "quiet" else [name for name in engines if name in BESIDE]
        found = measure(preset, batch, taking_part, condition, options.rounds)
        print("\n".join(to_lines(found)), flush=True)
        if options.add:
            add(results, found | {"machine": machine()})
        else:
            results.append(found)
        # After each, so that a run that is stopped has what it measured.
        options.out.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
        options.out.with_suffix(".md").write_text(to_markdown(everything))


def times_faster(engines: dict[str, Any], peer: str) -> float:
    """How many times as fast the engine of the peer's numbers is, each measured in the run that it was in."""
    own: float = engines["engine bf16"]["times_faster"] if peer in SIXTEEN_BITS else 1.0
    ratio: float = engines[peer]["times_faster"] / own
    return ratio


def best_of(result: dict[str, Any], kind: str) -> tuple[str, float] | None:
    """The fastest peer of 16 or 32 bits, and how many times as fast the engine of that kind is, by medians."""
    own = "engine bf16" if kind == "16" else "engine"
    found = result["engines"]
    own = "engine" if kind == "32" else "engine bf16"
    peers = {
        name: times_faster(found, name)
        for name, one in found.items()
        if "ms" in one and not name.startswith("engine") and (name in SIXTEEN_BITS) == (kind == "16")
    }
    if not peers or "ms" not in found.get(own, {}):
        return None
    return min(peers.items(), key=lambda item: item[1])


def to_lines(result: dict[str, Any]) -> list[str]:
    """The rows of a case, fastest first."""
    found = result["engines"]
    rows = []
    for name, one in sorted(found.items(), key=lambda item: item[1].get("ms", math.inf)):
        case = f"| {result['preset']} | {result['batch']} | {name}"
        if "failed" in one:
            rows.append(f"{case} | did not run: {one['failed'].splitlines()[0]} | | | |")
            continue
        times = [f"{one[key]:.2f}x" if key in one else "" for key in ("times_faster", "least_times_faster")]
        rows.append(f"{case} | {one['ms']:.3g} | {one['least_ms']:.3g} | {' / '.join(times)} | {one['error']:.1e} |")
    return rows


def to_markdown(everything: dict[str, Any]) -> str:
    """The tables."""
    about, results = everything["machine"], everything["results"]
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    lines = [
        f"{about['processor']}, {about['isa']}, load {about['load']}, commit {about['commit']}; {versions}.",
        "",
        "One evaluation, each engine in a process of its own, in turns; milliseconds; how many times as fast the "
        "engine is in float32, by medians / by least times; error relative to float64.",
    ]
    if everything["missing"]:
        lines += ["", f"Not installed: {', '.join(everything['missing'])}."]
    for result in results:
        if "machine" in result:
            own = result["machine"]
            case = f"{result['preset']}, batch {result['batch']}, {result['condition']}"
            lines += ["", f"{case}: {own['processor']}, {own['isa']}, load {own['load']}, commit {own['commit']}."]
    for condition, group in itertools.groupby(results, key=lambda result: result["condition"]):
        lines += ["", f"**{condition}**", ""]
        lines += [
            "| network | batch | | median, ms | least, ms | engine faster | error |",
            "|---|---|---|---|---|---|---|",
        ]
        lines += [line for result in group for line in to_lines(result)]
    lines += [
        "",
        "Over the best peer of the same kind, by medians:",
        "",
        "| network | batch | condition | float32 | 16 bits |",
    ]
    lines += ["|---|---|---|---|---|"]
    for result in results:
        cells = [result["preset"], result["batch"], result["condition"]]
        for kind in ("32", "16"):
            best = best_of(result, kind)
            cells.append("" if best is None else f"{best[1]:.2f}x ({best[0]})")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += fair_shares(results)
    if "splits" in everything:
        grown = ", ".join(f"{name} {value:,.0f} MiB" for name, value in everything["peak_mib"].items())
        lines += [
            "",
            f"Two threads are {everything['two_threads']:.2f} times as fast as one at batch 8. "
            f"Memory beyond the weights at batch 16: {grown}.",
            *cpu_profile.to_markdown(everything["splits"]),
        ]
    return "\n".join(lines) + "\n"


def fair_shares(results: list[dict[str, Any]]) -> list[str]:
    """Medians beside busy processes over what the fair share of the processors would give, in lines."""
    quiet = {(r["preset"], r["batch"]): r["engines"] for r in results if r["condition"] == "quiet"}
    rows = []
    for result in results:
        threads, others = CONDITIONS[result["condition"]]
        before = quiet.get((result["preset"], result["batch"]))
        if not others or before is None:
            continue
        cores = os.cpu_count() or threads
        share = max(1.0, (threads + others) / cores)
        for name, one in result["engines"].items():
            if "ms" in one and "ms" in before.get(name, {}):
                ratio = one["ms"] / (before[name]["ms"] * share)
                cells = (result["preset"], result["batch"], name, others, f"{one['ms']:.3g}", f"{ratio:.2f}")
                rows.append(f"| {' | '.join(map(str, cells))} |")
    head = ["", "Beside busy processes:", "", "| network | batch | | busy | median, ms | over the fair share |"]
    return [*head, "|---|---|---|---|---|---|", *rows] if rows else []


if __name__ == "__main__":
    main()
