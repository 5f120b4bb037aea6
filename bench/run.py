"""Run the CPU suites and write bench/results/cpu.json and cpu.md: `make bench`.

`python bench/run.py diffuse step` runs some of them, and writes cpu_diffuse_step.json and .md beside those of all.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

import pytest

HERE = Path(__file__).parent
RESULTS = HERE / "results"
sys.path.insert(0, str(HERE))


def main() -> int:
    suites = sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"any of {', '.join(suites)}; else all")
    parser.add_argument("--out", type=Path, help="results, without suffix")
    options = parser.parse_args()
    if unknown := set(options.suites) - set(suites):
        parser.error(f"unknown suite {sorted(unknown)}: known are {', '.join(suites)}")
    out = options.out or results_place(options.suites)
    from harness import machine

    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw.json"
        files = [str(HERE / f"bench_{name}.py") for name in options.suites or suites]
        flags = ["-q", "--benchmark-only", f"--benchmark-json={raw}", "--benchmark-warmup=on"]
        flags += ["--benchmark-group-by=group", "--benchmark-columns=median,iqr,min,rounds", "--benchmark-max-time=0.3"]
        code = pytest.main([*flags, *files])
        if code != 0:
            return int(code)
        timings = json.loads(raw.read_text())["benchmarks"]
    table = to_markdown(about, timings)
    out.parent.mkdir(parents=True, exist_ok=True)
    results = {"machine": about, "results": compact(timings)}
    out.with_suffix(".json").write_text(json.dumps(results, indent=1) + "\n")
    out.with_suffix(".md").write_text(table)
    print(table)
    return 0


def results_place(suites: list[str]) -> Path:
    """Where the results of these suites go, without suffix: those of all have a place of their own."""
    return RESULTS / "_".join(["cpu", *sorted(set(suites))])


def compact(timings: list[dict[str, object]]) -> list[dict[str, object]]:
    """Medians and spreads, and what the races gave, without the raw samples."""
    return [
        {
            "group": t["group"],
            "arm": t["params"]["arm"],  # type: ignore[index]
            "median_us": 1e6 * t["stats"]["median"],  # type: ignore[index]
            "iqr_us": 1e6 * t["stats"]["iqr"],  # type: ignore[index]
            **t["extra_info"],  # type: ignore[dict-item]
        }
        for t in timings
    ]


def _times_faster(line: dict[str, object], peer: str) -> str:
    ratio = line.get(f"times_faster_than_{peer}")
    return "" if ratio is None else f"{ratio:.1f}x"


def to_markdown(about: dict[str, object], timings: list[dict[str, object]]) -> str:
    """One line per group: our median and the peers' medians over it, from the interleaved race."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())  # type: ignore[attr-defined]
    lines = [
        f"{about['processor']}, {about['threads']} threads, {about['isa']}, load {about['load']}, "
        f"commit {about['commit']}; {versions}.",
        "",
        "| group | fastdiff, us (quartiles) | torch | diffusers | GB/s | of copy bandwidth |",
        "|---|---|---|---|---|---|",
    ]
    for line in compact(timings):
        if "fastdiff_us" not in line:
            continue
        cells = (
            line["group"],
            "{fastdiff_us:.1f} ({quartile_low_us:.1f}-{quartile_high_us:.1f})".format(**line),
            *(_times_faster(line, peer) for peer in ("torch", "diffusers")),
            "{gigabytes_per_second:.1f}".format(**line),
            "{fraction_of_copy:.0%}".format(**line),
        )
        lines.append(f"| {' | '.join(map(str, cells))} |")
    if built := [line for line in compact(timings) if line["group"] == "build a table"]:
        lines += ["", "| table of 1,000 evaluations | rows | build, ms |", "|---|---|---|"]
        lines += [f"| {line['arm']} | {line['rows']} | {line['median_us'] / 1000:.1f} |" for line in built]  # type: ignore[operator]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
