"""Where the CPU engine's time and memory go: by instruction, by thread, beyond the weights."""

from __future__ import annotations

import gc
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cpu_peers import peer
from harness import race
from torch import Tensor

import fastdiff as fd
from fastdiff.engine import engine_peak, matrix_peak, products_made, profile


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
    code = f"import sys; sys.path.insert(0, {here!r}); import cpu_profile as c; "
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
        call = peer(preset).to(memory_format=torch.channels_last)
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


def to_markdown(splits: list[dict[str, Any]]) -> list[str]:
    """A table for each case, in lines."""
    lines: list[str] = []
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
    return lines
