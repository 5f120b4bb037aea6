"""The site's page of benchmarks, out of bench/results: tables, figures, goals met and missed.

    python bench/page.py

writes docs/benchmarks.md and docs/benchmarks/*.svg. Nothing is measured here, and nothing left out: what is slower than
a peer is marked as plainly as what is faster, and a goal that is missed says so.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cpu_unet import times_faster
from matplotlib import rc_context
from matplotlib.figure import Figure

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
Data = dict[str, Any]
# The same bytes from the same matplotlib: no dates, no random names, letters as letters.
STYLE = {"svg.hashsalt": "fastdiff", "svg.fonttype": "none", "font.size": 9, "font.family": "sans-serif"}
FASTER, SLOWER = "#3949ab", "#c62828"
HEAD = """# Benchmarks

How fast each part is against a peer, what is slower, and which goals were missed. In short: [How fast](speed.md).
No GPU has run any of it: there are no GPU figures. [Limitations](limitations.md#not-measured) has what else was not
measured.

## How to read this page

- **A ratio** is the peer's median time over fastdiff's in the same run; below 1 fastdiff is slower.
- **The line below each table** has the command, the processor, its instruction set, the threads, the machine's load
  when the run began, and the versions.
- **Version and commit** are those of the code that was measured. Results are not measured anew for each release, so
  the version may be older than this documentation's. [Performance](performance.md) tells what later changes gave.
- **"quiet"** means that the benchmark started nothing beside the race. Other programs may have run: see the load.

`python bench/page.py` makes this page of the committed result files.
"""
# Losses that no result file holds.
ELSEWHERE = (
    "Beside the result files, [Training on the CPU](performance-training.md#the-losses) has two, on one thread of a "
    "busy machine: the op `mse` on 64x3x32x32 at 0.8x of PyTorch's, and with its gradient on 1x3x32x32 at 0.7x.\n"
)


@dataclass(frozen=True)
class Goal:
    """What was aimed at and what came out, in times as fast."""

    what: str
    reached: float
    goal: float

    def line(self) -> str:
        verdict = "met" if self.reached >= self.goal else "**missed**"
        return f"- {self.what}: {self.reached:.2f}x, goal {self.goal:g}x: {verdict}."


@dataclass
class Section:
    """A part of the page: one measurement.

    Attributes:
        stem: Of its result file and its figure.
        title, told: Heading, and what was measured, in a sentence or two.
        command: What made it.
        machine: Where, as the result file has it.
        header, rows: The table.
        bars: Label and times as fast as the peer, for the figure.
        goals: What was aimed at.
        named: How many columns say what a row is of.
    """

    stem: str
    title: str
    told: str
    command: str
    machine: Data
    header: list[str]
    rows: list[list[str]]
    bars: list[tuple[str, float]] = field(default_factory=list)
    goals: list[Goal] = field(default_factory=list)
    named: int = 2

    def losses(self) -> list[str]:
        """A line for each row in which something is slower than its peer, with the ratio."""
        anchor = re.sub(r"[^a-z0-9]+", "-", self.title.lower().replace("'", ""))
        lines = []
        for row in self.rows:
            slower = [
                cell if head in ("", "faster by") else f"{head} {cell}"
                for head, cell in zip(self.header, row, strict=True)
                if "slower" in cell
            ]
            if slower:
                what = ", ".join(cell for cell in row[: self.named] if "slower" not in cell)
                lines.append(f"- [{self.title}](#{anchor}): {what}: {'; '.join(slower)}")
        return lines


def times(ratio: float) -> str:
    """A ratio as the table has it: what is slower in bold letters."""
    return f"{ratio:.2f}x" if ratio >= 1 else f"**{ratio:.2f}x, slower**"


def us(value: float) -> str:
    return f"{value:,.0f} µs" if value < 10_000 else f"{value / 1000:,.1f} ms"


def ops(data: Data) -> Section:
    rows, bars, ratios = [], [], {}
    for entry in data["results"]:
        if entry["arm"] != "fastdiff":
            continue
        name = entry["group"]
        ratios[name] = entry["times_faster_than_diffusers"]
        rows.append([name, us(entry["fastdiff_us"]), us(entry["torch_us"]), us(entry["diffusers_us"])])
        rows[-1] += [times(entry["times_faster_than_torch"]), times(ratios[name])]
        bars.append((name, ratios[name]))
    goals = [
        Goal(f"{name} 64x3x32x32 nchw against diffusers", ratios[f"{name} 64x3x32x32 nchw"], 5.0)
        for name in ("diffuse", "step ddpm")
    ]
    return Section(
        "cpu",
        "Noising and a sampler's step",
        "`diffuse` draws noise and noises a batch, `step` executes a row of a table, noise included. In one "
        "process, in turns; medians.",
        "python bench/run.py",
        data["machine"],
        ["op, shape, layout", "fastdiff", "PyTorch", "diffusers", "against PyTorch", "against diffusers"],
        rows,
        bars,
        goals,
    )


# Of an evaluation by the engine against the best peer in the same numbers, on a quiet machine.
ENGINE_GOALS = {
    ("ho-cifar10", 1, "float32"): 2.0,
    ("ho-cifar10", 8, "float32"): 2.8,
    ("ho-cifar10", 16, "float32"): 2.8,
    ("ho-cifar10", 1, "bf16"): 1.6,
    ("ho-cifar10", 8, "bf16"): 1.8,
    ("iddpm-imagenet64", 1, "float32"): 2.0,
    ("adm-imagenet64", 1, "float32"): 2.0,
    ("digits", 64, "float32"): 2.5,
}


def networks(data: Data) -> Section:
    rows, bars, goals = [], [], []
    for race in data["results"]:
        ran = {name: value for name, value in race["engines"].items() if "ms" in value}
        where = f"{race['preset']}, batch {race['batch']}, {race['condition']}"
        best: dict[str, tuple[float, str]] = {}
        for name, value in sorted(ran.items(), key=lambda item: item[1]["ms"]):
            if name.startswith("engine"):
                continue
            number = "bf16" if name.endswith("bf16") else "float32"
            ratio = times_faster(ran, name)
            rows.append([where, name, number, f"{value['ms']:.1f} ms", f"{value['ms'] / ratio:.1f} ms", times(ratio)])
            best[number] = min(best.get(number, (ratio, name)), (ratio, name))
        failed = [name for name, value in race["engines"].items() if "ms" not in value]
        rows += [[where, name, "float32", "did not run", "", ""] for name in failed]
        bars += [(f"{where}, {number}: {name}", ratio) for number, (ratio, name) in sorted(best.items(), reverse=True)]
        for number, (ratio, name) in sorted(best.items(), reverse=True):
            goal = ENGINE_GOALS.get((race["preset"], race["batch"], number))
            if goal is not None and race["condition"] == "quiet":
                goals.append(
                    Goal(f"evaluating {race['preset']}, batch {race['batch']}, {number}, against {name}", ratio, goal)
                )
    return Section(
        "cpu_unet",
        "A network's evaluation on the CPU",
        "One evaluation of the networks of Ho et al. (ho-cifar10), of the digits, and of two for 64x64 images, by "
        "fastdiff's engine and by others, each in a process of its own, in turns; medians, in float32 and in bfloat16 "
        "against the peer in the same. "
        '"quiet": nothing that the benchmark started ran beside it; "2 busy": beside two processes that keep a '
        "processor busy each. The figure has the fastest peer of each race. The races at 64x64 and with one thread are "
        "of version 0.2.0, and against fewer peers; MNN's error at 64x64 is 10^-3, the others' below 10^-5.",
        "python bench/cpu_unet.py",
        data["machine"],
        ["network", "peer", "numbers", "its time", "fastdiff's", "faster by"],
        rows,
        bars,
        goals,
        named=3,
    )


def training(data: Data) -> Section:
    goals = {"digits": 2.5, "ho-cifar10": 2.0}
    rows, bars, aims = [], [], []
    for race in data["races"]:
        ours, theirs = race["ms"]["fastdiff"], race["ms"][race["peer"]]
        where = f"{race['network']}, batch {race['batch']}"
        rows.append([where, race["peer"], f"{theirs:,.0f} ms", f"{ours:,.0f} ms", times(race["times_faster"])])
        bars.append((f"{where}: {race['peer']}", race["times_faster"]))
        aims.append(Goal(f"training {where} against {race['peer']}", race["times_faster"], goals[race["network"]]))
    return Section(
        "cpu_train",
        "A training step on the CPU",
        "Both passes, clipping, AdamW and the average; in turns, medians.",
        "python bench/cpu_train.py",
        data["machine"],
        ["network", "peer", "its time", "fastdiff's", "faster by"],
        rows,
        bars,
        aims,
    )


def scaling(data: Data) -> Section:
    cases = {name: case for name, case in data.items() if isinstance(case, dict) and "two_apart" in case}
    rows = [
        [
            name,
            str(case["batch"]),
            *(f"{case[how]:,.1f}" for how in ("one", "two")),
            times(case["times_faster"]),
            f"{case['two_apart']:.2f}x",
        ]
        for name, case in cases.items()
    ]
    return Section(
        "train_scaling",
        "Two processes that train as one",
        "Images a second of one process of one thread and of two. Two that train apart, each for itself, bound "
        "what can be reached.",
        "python bench/train_scaling.py CASE",
        next(iter(cases.values()))["machine"],
        ["network", "images a step", "one, images/s", "two, images/s", "faster by", "two apart"],
        rows,
        [(name, case["times_faster"]) for name, case in cases.items()],
        [Goal(f"two processes, {name}", case["times_faster"], 1.8) for name, case in cases.items()],
    )


def memory(data: Data) -> Section:
    return Section(
        "train_memory",
        "Memory of a training",
        "The network of Ho et al., 16 images a step: the most that is resident, Python and PyTorch included.",
        "python bench/train_memory.py",
        data["machine"],
        ["images at a time", "activation checkpointing", "before", "training", "with a checkpoint written", "a step"],
        [
            [str(row["micro_batch"]), "yes" if row["activation_checkpointing"] else "no"]
            + [f"{row[name]:,.0f} MiB" for name in ("before_mib", "steps_mib", "saved_mib")]
            + [f"{row['seconds']:.1f} s"]
            for row in data["rows"]
        ],
    )


def likelihoods(data: Data) -> Section:
    rows = [
        [
            "a loop over t in PyTorch",
            f"{data['loop_s']:.1f} s",
            f"{data['fastdiff_s']:.1f} s",
            times(data["times_faster"]),
        ],
        [
            "the same around fd.UNet",
            f"{data['loop_over_unet_s']:.1f} s",
            f"{data['fastdiff_s']:.1f} s",
            times(data["times_faster_than_loop_over_unet"]),
        ],
    ]
    for one in data["estimates"]:
        label = f"evaluations for an error of {one['standard_error_share']:.1%}, against all terms"
        rows.append(
            [
                label,
                f"{one['evaluations_of_all_terms']:,}",
                f"{one['evaluations']:,}",
                f"{one['times_fewer']:.0f}x fewer",
            ]
        )
    return Section(
        "likelihood",
        "The variational bound",
        f"All terms of {data['images']} digits with T = {data['timesteps']}; and the estimate's evaluations.",
        "python bench/likelihood.py",
        data["machine"],
        ["peer", "its time", "fastdiff's", "faster by"],
        rows,
        [
            ("a loop over t in PyTorch", data["times_faster"]),
            ("around fd.UNet", data["times_faster_than_loop_over_unet"]),
        ],
        [Goal("all terms of the bound against a loop in PyTorch", data["times_faster"], 3.0)],
    )


def generation(data: Data) -> Section:
    speed, ray, megabytes = data["speed"], data["ray"]["seconds"], data["memory"]["megabytes"]
    rows = [
        ["one process, 2,000 digits by DDIM-50", f"{speed['one']:.1f} images/s"],
        ["two processes", f"{speed['two']:.1f} images/s, {speed['times_faster']:.2f}x"],
        ["share of the time that parts and records take", f"{speed['share_of_files']:.2%}"],
        *([f"resident with {int(number):,} images", f"{value:.0f} MB"] for number, value in megabytes.items()),
        ["1,000 digits from nothing: two processes", f"{ray['processes']:.1f} s"],
        [
            "1,000 digits from nothing: two actors of Ray, against that",
            f"{ray['ray']:.1f} s, **{ray['processes'] / ray['ray']:.2f}x, slower**",
        ],
    ]
    return Section(
        "generation",
        "Many images",
        "`fastdiff generate`: parts that processes share out. Memory was measured at commit "
        f"{data['memory']['machine']['commit']}, Ray at {data['ray']['machine']['commit']}.",
        "python bench/generation.py speed|memory|ray",
        speed["machine"],
        ["", ""],
        rows,
    )


def evaluation(data: Data) -> Section:
    return Section(
        "evaluation",
        "Evaluating samples",
        f"`fastdiff evaluate` of {data['images']:,} images of {data['size']}x{data['size']} in colour, built-in "
        "features, the start of Python included.",
        "python bench/evaluation.py",
        data["machine"],
        ["time", "most memory"],
        [[f"{data['seconds']:.1f} s", f"{data['peak_bytes'] / 2**20:.0f} MiB"]],
    )


SERVING_GOALS = {"digits": 2.5, "ho-cifar10": 1.3}


def serving(data: Data) -> Section:
    def waits(case: Data) -> list[str]:
        alone, shared = case["waiting_one_p50_p99"], case["waiting_together_p50_p99"]
        marked = [
            f"{ours:.1f} s" if ours <= theirs else f"{ours:.1f} s (**{theirs / ours:.2f}x, slower**)"
            for theirs, ours in zip(alone, shared, strict=True)
        ]
        return [" / ".join(f"{value:.1f} s" for value in alone), " / ".join(marked)]

    cases = {name: case for name, case in data.items() if "times" in case}
    rows = [
        [name, f"{case['one_at_a_time']:.1f}", f"{case['together']:.1f}", times(case["times"]), *waits(case)]
        for name, case in cases.items()
    ]
    return Section(
        "serving",
        "Serving together",
        "Requests of 1 to 4 images that share evaluations, against the same one at a time; images a second, and "
        "how long a request waits (median / 99th percentile) at eight times that load. A network that fills the "
        "processors alone gains nothing, and its median request waits longer.",
        "python bench/serving.py digits|ho-cifar10",
        next(iter(cases.values()))["machine"],
        ["network", "one at a time", "together", "faster by", "waiting, one at a time", "waiting, together"],
        rows,
        [(name, case["times"]) for name, case in cases.items()],
        [Goal(f"serving {name} together", case["times"], SERVING_GOALS[name]) for name, case in cases.items()],
        named=1,
    )


def guidance(data: Data) -> Section:
    return Section(
        "guidance",
        "Guidance on the digits",
        "Quality, not time: how many samples a classifier of real digits takes for the digit that was asked for.",
        "python bench/guidance.py",
        data["machine"],
        ["scale", "taken for the digit asked for", "standard error"],
        [[f"{row['scale']:g}", f"{row['share']:.1%}", f"{row['standard_error']:.1%}"] for row in data["scales"]],
    )


def processes(data: Data) -> Section:
    def shown(value: float | None) -> str:
        return "-" if value is None or value > 1000 else f"{value:.2f}"

    steps = [str(n) for n in data["steps"]]
    chosen = ("ddpm", "ddim", "dpmpp", "unipc", "heun", "edm")
    rows = [
        [process, name, *(shown(value) for value in by_sampler[name])]
        for process, by_sampler in data["distance"].items()
        for name in chosen
        if name in by_sampler
    ]
    return Section(
        "processes",
        "Samplers on trained networks",
        "Quality, not time: Fréchet distance of 1,797 samples, not clamped, to the digits by their 8x8 pixels; lower "
        "is nearer. A small network was trained on each process; columns are evaluations of it. "
        f"Six of {len(next(iter(data['distance'].values())))} samplers; "
        "the file has all.",
        "python bench/processes.py bench/results/processes.json",
        {"versions": data["versions"]},
        ["process, prediction", "sampler", *steps],
        rows,
    )


def launches(data: Data) -> Section:
    return Section(
        "launch_overhead",
        "Python before a launch on a GPU",
        "Without a GPU: what a call costs until Triton would hand it to the driver, with a stub in the driver's "
        "place. No GPU has run any of the kernels yet.",
        "python bench/launch_overhead.py",
        data["machine"],
        ["call", "least", "median"],
        [
            [name, f"{value['least_us']:.1f} µs", f"{value['median_us']:.1f} µs"]
            for name, value in data["microseconds"].items()
        ],
    )


# By result file, in the order of the page.
MAKERS: dict[str, Callable[[Data], Section]] = {
    "cpu_unet": networks,
    "cpu": ops,
    "cpu_train": training,
    "train_scaling": scaling,
    "train_memory": memory,
    "likelihood": likelihoods,
    "serving": serving,
    "generation": generation,
    "evaluation": evaluation,
    "launch_overhead": launches,
    "processes": processes,
    "guidance": guidance,
}


def sections(results: Path = RESULTS) -> list[Section]:
    """All sections. Raises ValueError where a result file has no section, or a section no file."""
    found = {path.stem for path in results.glob("*.json")}
    if found != set(MAKERS):
        raise ValueError(
            f"expected a section for each file of {results}, got {sorted(found ^ set(MAKERS))} in one of the two alone"
        )
    return [make(json.loads((results / f"{stem}.json").read_text(encoding="utf-8"))) for stem, make in MAKERS.items()]


def where(machine: Data) -> str:
    """The machine, the versions and the commit, in a line."""
    parts = (
        [f"{machine['processor']}, {machine['isa']}, {machine['threads']} threads of {machine['cores']} cores"]
        if "isa" in machine
        else []
    )
    if "load" in machine:
        parts.append(f"load {machine['load'][0]:g}")
    parts += [f"{name} {version}" for name, version in machine.get("versions", {}).items()]
    if "commit" in machine:
        parts.append(f"commit {machine['commit']}")
    return "; ".join(parts)


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows]) + "\n"


def markdown(parts: list[Section]) -> str:
    """The page."""
    goals = [goal for section in parts for goal in section.goals]
    missed = sum(goal.reached < goal.goal for goal in goals)
    slower = [line for section in parts for line in section.losses()]
    text = f"{HEAD}\n## Goals\n\n" + "\n".join(goal.line() for goal in goals)
    text += f"\n\n{len(goals) - missed} met, {missed} missed.\n\n## Where a peer is faster\n\n"
    text += "\n".join(slower) if slower else "In none of the tables below."
    text += f"\n\n{ELSEWHERE}"
    for section in parts:
        text += f"\n## {section.title}\n\n{section.told}\n\n"
        if section.bars:
            text += f"![Times as fast as the peer](benchmarks/{section.stem}.svg)\n\n"
        text += table(section.header, section.rows)
        text += f"\n`{section.command}`: {where(section.machine)}. "
        text += f"[{section.stem}.json](../bench/results/{section.stem}.json)\n"
    return text


def draw(section: Section, path: Path) -> None:
    """Bars of how many times as fast, with a line at 1; what is slower in another colour."""
    figure = Figure(figsize=(7.2, 0.6 + 0.24 * len(section.bars)), layout="constrained")
    axes = figure.subplots()
    labels = [label for label, _ in section.bars]
    ratios = [ratio for _, ratio in section.bars]
    places = range(len(labels))
    axes.barh(places, ratios, color=[FASTER if ratio >= 1 else SLOWER for ratio in ratios], height=0.7)
    for place, ratio in zip(places, ratios, strict=True):
        axes.text(ratio, place, f" {ratio:.2f}x", va="center")
    axes.axvline(1, color="#666666", linewidth=1)
    axes.set_yticks(places, labels)
    axes.set(xlim=(0, max(ratios) * 1.12), xlabel="times as fast as the peer")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, transparent=True, metadata={"Date": None})


def write(docs: Path, results: Path = RESULTS) -> None:
    """Write the page and its figures into a folder of documentation."""
    parts = sections(results)
    (docs / "benchmarks").mkdir(exist_ok=True)
    (docs / "benchmarks.md").write_text(markdown(parts), encoding="utf-8")
    with rc_context(STYLE):
        for section in parts:
            if section.bars:
                draw(section, docs / "benchmarks" / f"{section.stem}.svg")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="where the page and its figures go")
    write(parser.parse_args().docs)
