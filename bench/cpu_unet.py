"""The CPU engine against its peers, interleaved in one process: `make bench-cpu`.

    python bench/cpu_unet.py [--only ho-cifar10] [--no-compile] [--rounds 9]

Writes bench/results/cpu_unet.json and .md. The peer is diffusers' UNet2DModel of the same shape (the tests show that
they compute the same), eager in both layouts and compiled with frozen weights. diffusers has no equal of the
ImageNet-64 network, whose heads differ in width: its peer is our own module, in the same three ways.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from harness import machine, race
from torch import Tensor, nn

import fastdiff as fd
from fastdiff.convert import from_unet
from fastdiff.engine import engine_peak, matrix_peak, products_made, profile

RESULTS = Path(__file__).parent / "results" / "cpu_unet"
CASES = [("ho-cifar10", 1), ("ho-cifar10", 4), ("ho-cifar10", 8), ("ho-cifar10", 16), ("iddpm-imagenet64", 1)]
CASES += [("digits", 1), ("digits", 64)]
# diffusers' name for the network of Ho et al., from the configuration of google/ddpm-cifar10-32.
DIFFUSERS_HO = {
    "sample_size": 32,
    "block_out_channels": (128, 256, 256, 256),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
    "downsample_padding": 0,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "norm_eps": 1e-6,
    "attention_head_dim": None,
}


def peer_of(preset: str) -> nn.Module:
    """The network that the engine races, with random weights."""
    torch.manual_seed(0)
    if preset == "ho-cifar10":
        import diffusers

        return diffusers.UNet2DModel(**DIFFUSERS_HO).eval()
    unet = fd.UNet(fd.UNetConfig.preset(preset)).eval()
    return unet if preset == "iddpm-imagenet64" else from_unet(unet).eval()


def arms_of(preset: str, batch: int, compiled: bool) -> dict[str, Callable[[], object]]:
    """Calls that evaluate the network once, by name."""
    config = fd.UNetConfig.preset(preset)
    x = torch.randn(batch, config.in_channels, config.image_size, config.image_size)
    last = x.contiguous(memory_format=torch.channels_last)
    t = torch.full((batch,), 500)
    engine = fd.compile(fd.UNet(config).eval(), batch=batch, size=config.image_size)
    first, second, third = (peer_of(preset) for _ in range(3))
    second, third = second.to(memory_format=torch.channels_last), third.to(memory_format=torch.channels_last)
    # Our own module keeps its weights channels_last; as a peer it gets both layouts.
    first = first.to(memory_format=torch.contiguous_format)
    arms: dict[str, Callable[[], object]] = {
        "engine": lambda: engine(last, t),
        "eager nchw": lambda: first(x, t),
        "eager nhwc": lambda: second(last, t),
    }
    if compiled:
        fast = torch.compile(third)
        arms["compiled"] = lambda: fast(last, t)
    return arms


def measure(preset: str, batch: int, compiled: bool, rounds: int) -> dict[str, Any]:
    """Medians in milliseconds, and the peers' over the engine's."""
    arms = arms_of(preset, batch, compiled)
    start = time.perf_counter()
    if compiled:
        arms["compiled"]()
    compile_seconds = time.perf_counter() - start
    seconds = race(arms, rounds, warmup=2)
    median = {name: 1e3 * statistics.median(values) for name, values in seconds.items()}
    ours = median["engine"]
    peers = {name: value for name, value in median.items() if name != "engine"}
    low, _, high = statistics.quantiles(seconds["engine"], n=4)
    return {
        "preset": preset,
        "batch": batch,
        "ms": median,
        "ms_per_image": ours / batch,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "times_faster": {name: value / ours for name, value in peers.items()},
        "times_faster_than_best": min(peers.values()) / ours,
        "compile_seconds": compile_seconds,
    }


def split_of(preset: str, batch: int) -> dict[str, Any]:
    """Where the engine's time goes, by kind of instruction, and how much of the machine it uses."""
    config = fd.UNetConfig.preset(preset)
    engine = fd.compile(fd.UNet(config).eval())
    times = profile(engine, batch, (config.image_size, config.image_size))
    peak, torch_peak = engine_peak(), matrix_peak()
    kinds: dict[str, list[float]] = {}
    for found in times:
        i = found.instruction
        kind = f"{i.op} {i.kernel}x{i.kernel} {i.algorithm}" if i.op == "conv" else i.op
        entry = kinds.setdefault(kind, [0, 0.0, 0.0, 0.0])
        entry[0] += 1
        entry[1] += found.milliseconds
        entry[2] += found.flops
        entry[3] += products_made(found.flops, i)
    total = sum(entry[1] for entry in kinds.values())
    return {
        "preset": preset,
        "batch": batch,
        "total_ms": total,
        "gflops_by_direct_formula": sum(entry[2] for entry in kinds.values()) / total / 1e6,
        "torch_matmul_gflops": torch_peak / 1e9,
        "engine_peak_gflops": peak / 1e9,
        "kinds": {
            kind: {
                "count": count,
                "ms": ms,
                "share": ms / total,
                "gflops": flops / max(ms, 1e-6) / 1e6,
                "of_peak": 1e3 * made / max(ms, 1e-6) / peak,
            }
            for kind, (count, ms, flops, made) in sorted(kinds.items(), key=lambda item: -item[1][1])
        },
        "instructions": [
            {
                "shapes": found.description,
                "algorithm": found.instruction.algorithm if found.instruction.op == "conv" else found.instruction.op,
                "ms": found.milliseconds,
                "predicted_ms": found.predicted_ms,
                "of_torch_peak": 1e3 * found.flops / max(found.milliseconds, 1e-6) / torch_peak,
            }
            for found in times
        ],
    }


def peak_memory(arm: str, preset: str, batch: int) -> float:
    """MiB that three evaluations add to a process of their own."""
    here = str(Path(__file__).parent)
    code = f"import sys; sys.path.insert(0, {here!r}); import cpu_unet as c; "
    code += f"c.report_memory({arm!r}, {preset!r}, {batch})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout)


def report_memory(arm: str, preset: str, batch: int) -> None:
    """Print how much the process grew while the arm ran, weights and packing not counted."""
    config = fd.UNetConfig.preset(preset)
    shape = (batch, config.in_channels, config.image_size, config.image_size)
    x, t = torch.randn(shape).contiguous(memory_format=torch.channels_last), torch.full((batch,), 500)
    call: Callable[[Tensor, Tensor], object]
    if arm == "engine":
        network = fd.UNet(config).eval()
        call = fd.compile(network)
        call(x[:1], t[:1])
    else:
        call = peer_of(preset).to(memory_format=torch.channels_last)
        with torch.no_grad():
            call(x[:1], t[:1])
    gc.collect()
    # The highest water mark from here on.
    Path("/proc/self/clear_refs").write_text("5")
    before = _status_mib("VmRSS")
    with torch.no_grad():
        for _ in range(3):
            call(x, t)
    print(_status_mib("VmHWM") - before)


def _status_mib(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def scaling(preset: str, batch: int, rounds: int) -> float:
    """How many times faster two threads are than one."""
    config = fd.UNetConfig.preset(preset)
    engine = fd.compile(fd.UNet(config).eval())
    x, t = torch.randn(batch, config.in_channels, config.image_size, config.image_size), torch.full((batch,), 500)

    def with_threads(count: int) -> Callable[[], object]:
        def call() -> object:
            torch.set_num_threads(count)
            return engine(x, t)

        return call

    before = torch.get_num_threads()
    seconds = race({"1": with_threads(1), "2": with_threads(2)}, rounds, warmup=2)
    torch.set_num_threads(before)
    return statistics.median(seconds["1"]) / statistics.median(seconds["2"])


def main() -> None:
    """Run everything and write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--only", default="", help="networks whose name has this in it")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULTS, help="results, without suffix")
    options = parser.parse_args()
    import torch._inductor.config as inductor

    inductor.freezing = True
    about = machine()
    results = []
    cases = [(preset, batch) for preset, batch in CASES if options.only in preset]
    with torch.no_grad():
        for preset, batch in cases:
            results.append(measure(preset, batch, not options.no_compile, options.rounds))
            print(to_line(results[-1]), flush=True)
            torch._dynamo.reset()
        splits = [split_of(preset, batch) for preset, batch in cases]
        speedup = scaling("ho-cifar10", 8, options.rounds)
    memory = {arm: peak_memory(arm, "ho-cifar10", 16) for arm in ("engine", "diffusers")}
    text = to_markdown(about, results, splits, speedup, memory)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    everything = {"machine": about, "results": results, "splits": splits, "two_threads": speedup, "peak_mib": memory}
    options.out.with_suffix(".json").write_text(json.dumps(everything, indent=1) + "\n")
    options.out.with_suffix(".md").write_text(text)
    print(text)


def to_line(result: dict[str, Any]) -> str:
    """A row of the table."""
    ratios = result["times_faster"]
    cells = [result["preset"], result["batch"], f"{result['ms']['engine']:.1f}", f"{result['ms_per_image']:.2f}"]
    cells += [f"{ratios[name]:.2f}x" if name in ratios else "" for name in ("eager nchw", "eager nhwc", "compiled")]
    return f"| {' | '.join(map(str, cells))} | {result['times_faster_than_best']:.2f}x |"


def to_markdown(
    about: dict[str, Any],
    results: list[dict[str, Any]],
    splits: list[dict[str, Any]],
    speedup: float,
    memory: dict[str, float],
) -> str:
    """The tables."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    headings = ("network", "batch", "engine, ms", "per image", "eager nchw", "eager nhwc", "compiled, frozen", "best")
    ratios = [result["times_faster_than_best"] for result in results]
    grown = ", ".join(f"{name} {value:,.0f} MiB" for name, value in memory.items())
    lines = [
        f"{about['processor']}, {about['threads']} threads, {about['isa']}, load {about['load']}, "
        f"commit {about['commit']}; {versions}.",
        "",
        "One evaluation, medians of interleaved calls; times faster than each peer, and than the best of them:",
        "",
        f"| {' | '.join(headings)} |",
        "|" + "---|" * len(headings),
        *map(to_line, results),
        "",
        f"Geometric mean over the best peer: {math.exp(statistics.fmean(map(math.log, ratios))):.2f}x. "
        f"Two threads are {speedup:.2f} times as fast as one at batch 8. "
        f"Memory beyond the weights at batch 16: {grown}.",
    ]
    for split in splits:
        lines += [
            "",
            f"{split['preset']}, batch {split['batch']}: {split['total_ms']:.1f} ms, "
            f"{split['gflops_by_direct_formula']:.0f} GFLOP/s by the direct formula; PyTorch's matrix product: "
            f"{split['torch_matmul_gflops']:.0f}, the engine's: {split['engine_peak_gflops']:.0f}. The products that "
            "are made, over the engine's peak:",
            "",
            "| instructions | count | ms | share | GFLOP/s | of peak |",
            "|---|---|---|---|---|---|",
        ]
        for kind, k in split["kinds"].items():
            cells = (
                kind,
                k["count"],
                f"{k['ms']:.2f}",
                f"{k['share']:.0%}",
                f"{k['gflops']:.0f}",
                f"{k['of_peak']:.0%}",
            )
            lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
