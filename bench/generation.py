"""What generating many images costs: in two processes, in files, in memory, and by Ray.

    python bench/generation.py speed|memory|ray

Writes the part into bench/results/generation.json and .md, beside the others that are there; a call ends in under 150
seconds. The network is the digits' with random weights, whose time is that of trained ones; a process has one thread.

speed: 2,000 digits by DDIM-50 in parts of 100, by one process and by two that share the job. They are there all the
time and take turns, 200 images each; the figures are medians. The share of files is what is not sampling: parts,
manifest, records, checksums and waiting for the disk.
memory: the largest resident memory of a process that makes 1,000 and 20,000 digits by DDIM-2.
ray: 1,000 digits by DDIM-50, from nothing to the last part, by two actors of Ray and by two processes.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from harness import machine

RESULTS = Path(__file__).parent / "results" / "generation"
TURNS, IMAGES = 10, 200


def make_model(folder: Path) -> str:
    """The digits' network with random weights."""
    import torch

    import fastdiff as fd
    from fastdiff.files.checkpoint import save_model
    from fastdiff.files.data import DataScaling

    torch.manual_seed(0)
    unet = fd.UNet(fd.UNetConfig.preset("digits"))
    save_model(folder / "model", unet, fd.Diffusion(fd.NoiseSchedule.cosine(1000)), DataScaling(17))
    return str(folder / "model")


def samples(model: str, num: int, steps: int, part_size: int) -> Any:
    """The work, with the model loaded."""
    import torch

    import fastdiff as fd
    from fastdiff.generation.generate import Request, Samples

    torch.set_num_threads(1)
    return Samples.of(fd.Pipeline.from_pretrained(model), Request(num, steps=steps, part_size=part_size))


def serve(pipe: Connection, model: str, out: str, index: int, count: int) -> None:
    """Make the images of a shard up to a number when told to; tell the seconds, and those of sampling."""
    import torch

    import fastdiff as fd
    from fastdiff.generation.generate import Request, generate
    from fastdiff.generation.shards import Shard

    torch.set_num_threads(1)
    network = fd.Pipeline.from_pretrained(model)
    sample, taken = network.sample, []

    def timed(*arguments: Any, **options: Any) -> Any:
        began = time.perf_counter()
        found = sample(*arguments, **options)
        taken.append(time.perf_counter() - began)
        return found

    network.sample = timed  # type: ignore[method-assign]
    # The engine is made, and its memory asked for.
    sample(64, steps=2)
    pipe.send(None)
    while num := pipe.recv():
        taken.clear()
        began = time.perf_counter()
        generate(network, out, Request(num, steps=50, part_size=100), shard=Shard(index, count))
        pipe.send((time.perf_counter() - began, sum(taken)))


def speed(model: str, folder: str) -> dict[str, Any]:
    """Seconds of each turn, by one process and by the slower of two."""
    context = multiprocessing.get_context("spawn")
    arms: dict[str, list[Any]] = {"one": [], "two": []}
    processes = []
    for number, (arm, pipes) in enumerate(arms.items(), start=1):
        for index in range(number):
            here, there = context.Pipe()
            arguments = (there, model, f"{folder}/{arm}", index, number)
            processes.append(context.Process(target=serve, args=arguments))
            processes[-1].start()
            pipes.append(here)
    for pipe in (pipe for pipes in arms.values() for pipe in pipes):
        pipe.recv()
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    shares = []
    for turn in range(TURNS):
        for arm, pipes in arms.items():
            for pipe in pipes:
                pipe.send(IMAGES * (turn + 1))
            told = [pipe.recv() for pipe in pipes]
            seconds[arm].append(max(whole for whole, _ in told))
            if arm == "one":
                shares.append(1 - told[0][1] / told[0][0])
    for pipe in (pipe for pipes in arms.values() for pipe in pipes):
        pipe.send(0)
    for process in processes:
        process.join()
    one, two = (statistics.median(values) for values in seconds.values())
    return {
        "one": IMAGES / one,
        "two": IMAGES / two,
        "times_faster": statistics.median(a / b for a, b in zip(*seconds.values(), strict=True)),
        "share_of_files": statistics.median(shares),
        "seconds": seconds,
        "shares_of_files": shares,
    }


def grow(pipe: Connection, model: str, out: str, num: int) -> None:
    """Make so many images; tell the largest resident memory, in MB."""
    from fastdiff.generation.running import run
    from fastdiff.generation.shards import Shard

    run(samples(model, num, 2, 512), Path(out), Shard(), 64, None)
    pipe.send(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory(model: str, folder: str) -> dict[str, Any]:
    """MB by the number of images."""
    found = {}
    for num in (1_000, 20_000):
        here, there = multiprocessing.get_context("spawn").Pipe()
        process = multiprocessing.get_context("spawn").Process(target=grow, args=(there, model, f"{folder}/{num}", num))
        process.start()
        found[str(num)] = here.recv()
        process.join()
    return {"megabytes": found}


def one_shard(model: str, out: str, index: int) -> None:
    """Make the parts of one of two shards."""
    from fastdiff.generation.running import run
    from fastdiff.generation.shards import Shard

    run(samples(model, 1000, 50, 125), Path(out), Shard(index, 2), 64, None)


def ray(model: str, folder: str) -> dict[str, Any]:
    """Seconds of a job from nothing, by Ray and by processes, and when its first part was there."""
    from fastdiff.generation.ray_engine import run_by_ray

    load = partial(samples, model, 1000, 50, 125)
    work = load()

    def by_processes(out: str) -> None:
        context = multiprocessing.get_context("spawn")
        processes = [context.Process(target=one_shard, args=(model, out, index)) for index in range(2)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

    def by_ray(out: str) -> None:
        run_by_ray(work, load, out, workers=2)

    arms: dict[str, Callable[[str], None]] = {"processes": by_processes, "ray": by_ray}
    found: dict[str, Any] = {}
    for arm, make in arms.items():
        began, clock = time.time(), time.perf_counter()
        make(f"{folder}/{arm}")
        found[arm] = time.perf_counter() - clock
        parts = sorted(path.stat().st_mtime for path in Path(folder, arm, "parts").glob("*.npz"))
        found[f"{arm}_first_part"] = parts[0] - began
    return {"seconds": found}


def text_of(found: dict[str, Any]) -> str:
    """All parts as Markdown."""
    lines = []
    if "speed" in found:
        row = found["speed"]
        lines += [
            "2,000 digits by DDIM-50, one thread a process, medians of turns:\n",
            "| one process, images/s | two | times faster | share of files in one |",
            "|---|---|---|---|",
            f"| {row['one']:.1f} | {row['two']:.1f} | {row['times_faster']:.2f}x "
            f"| {100 * row['share_of_files']:.2f}% |",
            "",
        ]
    if "memory" in found:
        told = found["memory"]["megabytes"]
        listed = ", ".join(f"{int(num):,} images {value:.0f} MB" for num, value in told.items())
        lines += [f"Largest resident memory: {listed}.\n"]
    if "ray" in found:
        told = found["ray"]["seconds"]
        lines += [
            f"1,000 digits by DDIM-50 from nothing: two processes {told['processes']:.1f} s (the first part after "
            f"{told['processes_first_part']:.1f}), two actors of Ray {told['ray']:.1f} s (after "
            f"{told['ray_first_part']:.1f}).\n"
        ]
    for name, row in found.items():
        about = row["machine"]
        versions = ", ".join(f"{package} {version}" for package, version in about["versions"].items())
        lines.append(
            f"{name}: {about['processor']}, {about['isa']}, load {about['load']}, commit {about['commit']}; {versions}."
        )
    return "\n".join(lines) + "\n"


PARTS: dict[str, Callable[[str, str], dict[str, Any]]] = {"speed": speed, "memory": memory, "ray": ray}


def main() -> None:
    """Measure a part and write what came out."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    about = machine()
    with tempfile.TemporaryDirectory() as folder:
        row = PARTS[options.part](make_model(Path(folder)), folder) | {"machine": about}
    path = options.out.with_suffix(".json")
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {name: row if name == options.part else kept[name] for name in PARTS if name in {*kept, options.part}}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text_of(found))
    print(text_of(found))


if __name__ == "__main__":
    main()
