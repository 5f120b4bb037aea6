"""What the compiler makes of every shipped GPU kernel, on a machine with no GPU: registers, spills, access widths.

    python bench/kernel_report.py [--target sm_90] [--only step]

Every configuration is a call of a real launcher with meta tensors. So what is compiled here is what a GPU would be
given: the launchers' own arguments, specialised by Triton's own rules. Nothing is launched.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import triton
from kernel_configs_attention import CASES as ATTENTION_CASES
from kernel_configs_conv import CASES as CONV_CASES
from kernel_configs_group_norm import CASES as GROUP_NORM_CASES
from kernel_configs_losses import CASES as LOSS_CASES
from kernel_configs_presets import preset_cases
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from fastdiff.calls import DiffuseCall, StepCall
from fastdiff.kernels.diffuse import launch_diffuse
from fastdiff.kernels.select import launch_select
from fastdiff.kernels.step import launch_step
from fastdiff.nets.config import PRESETS
from fastdiff.ops import new_history
from fastdiff.process.table import ROW_WIDTH

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
AMD_WIDTHS = {"byte": 1, "sbyte": 1, "short": 2, "sshort": 2, "dword": 4, "dwordx2": 8, "dwordx3": 12, "dwordx4": 16}


@dataclass(frozen=True)
class Report:
    """What a compiled kernel uses.

    Attributes:
        registers: Of a thread, 32 bits each; vector registers on AMD.
        spills: Bytes of a thread's local memory: its stack, and registers that did not fit.
        shared: Bytes of a program's shared memory.
        loads: Bytes that a thread loads from global memory in one instruction -> number of such instructions.
        stores: The same for stores.
        async_loads: The same for loads straight to shared memory, on NVIDIA.
        matrix: Matrix instructions by name: HGMMA is wgmma, HMMA is mma.
        instructions: In the kernel's code.
    """

    registers: int
    spills: int
    shared: int
    loads: Counter[int]
    stores: Counter[int]
    async_loads: Counter[int]
    matrix: Counter[str]
    instructions: int


class AbsentDevice:
    """Stands in for Triton's driver where there is no device: it names a target and can do nothing else."""

    def __init__(self, target: GPUTarget) -> None:
        self.target = target

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> GPUTarget:
        return self.target

    def get_current_stream(self, device: object) -> int:
        return 0


def compile_launches(launch: Callable[[], object], target: str) -> list[Any]:
    """The compiled kernels of the Triton launches that `launch` makes; nothing runs."""
    compiled = []
    run = JITFunction.run

    def compile_only(kernel: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> None:
        compiled.append(run(kernel, *args, grid=grid, warmup=True, **options))

    device = AbsentDevice(TARGETS[target])
    with mock.patch.object(driver, "_active", device), mock.patch.object(JITFunction, "run", compile_only):
        launch()
    return compiled


def compile_launch(launch: Callable[[], object], target: str) -> Any:
    """The compiled kernel of the one Triton launch that `launch` makes; nothing runs.

    Raises:
        RuntimeError: it made none, or several.
    """
    compiled = compile_launches(launch, target)
    if len(compiled) != 1:
        raise RuntimeError(f"expected one kernel launch, got {len(compiled)}")
    return compiled[0]


def inspect(kernel: Any) -> Report:
    """Read a compiled kernel's machine code."""
    return _inspect_nvidia(kernel) if "cubin" in kernel.asm else _inspect_amd(kernel)


def _inspect_nvidia(kernel: Any) -> Report:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        command = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
        result = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    used = {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", result.stdout)}
    code = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@\S+\s+)?([A-Z][\w.]*)", result.stdout, re.MULTILINE)

    def widths(operation: str) -> Counter[int]:
        modifiers = [name.split(".")[1:] for name in code if name.split(".")[0] == operation]
        return Counter(_nvidia_width(parts) for parts in modifiers)

    return Report(
        registers=used["REG"],
        spills=used["STACK"] + used["LOCAL"],
        shared=kernel.metadata.shared,
        loads=widths("LDG"),
        stores=widths("STG"),
        async_loads=widths("LDGSTS"),
        matrix=Counter(name.split(".")[0] for name in code if re.match("[A-Z]+MMA", name)),
        instructions=sum(name != "NOP" for name in code),
    )


def _nvidia_width(modifiers: list[str]) -> int:
    for part in modifiers:
        if match := re.fullmatch(r"[US]?(8|16|32|64|128)", part):
            return int(match[1]) // 8
    return 4


def _inspect_amd(kernel: Any) -> Report:
    text = kernel.asm["amdgcn"]
    used = {name: int(value) for name, value in re.findall(r"^\s+\.(\w+):\s+(\d+)$", text, re.MULTILINE)}

    def widths(operation: str) -> Counter[int]:
        names = re.findall(rf"^\s+(?:global|buffer|flat)_{operation}_u?(\w+)", text, re.MULTILINE)
        return Counter(AMD_WIDTHS[name] for name in names)

    return Report(
        registers=used["vgpr_count"],
        spills=used["private_segment_fixed_size"] + 4 * (used["vgpr_spill_count"] + used["sgpr_spill_count"]),
        # Triton asks for it at the launch, so the code itself says 0 for most of it.
        shared=max(kernel.metadata.shared, used["group_segment_fixed_size"]),
        loads=widths("load"),
        stores=widths("store"),
        async_loads=Counter(),
        matrix=Counter(name.upper() for name in re.findall(r"^\s+v_(mfma)", text, re.MULTILINE)),
        instructions=len(re.findall(r"^\t[vs]_\w+|^\t(?:global|buffer|flat|ds)_\w+", text, re.MULTILINE)),
    )


def _empty(shape: tuple[int, ...], dtype: str, layout: str = "nchw") -> Tensor:
    memory_format = FORMATS[layout] if len(shape) == 4 else torch.contiguous_format
    return torch.empty(shape, dtype=getattr(torch, dtype), device="meta", memory_format=memory_format)


def diffuse_case(
    shape: tuple[int, ...],
    dtype: str,
    out: str | None = None,
    layout: str = "nchw",
    *,
    target: bool = True,
    noise: bool = False,
    captured: bool = False,
) -> Callable[[], object]:
    """A launch of diffuse with images [B, ...] of type `dtype`, results of type `out`; its numbers in memory or not."""
    ids = _empty(shape[:1], "int64")
    given = _empty(shape, out or dtype, layout) if noise else None
    out_type = getattr(torch, out or dtype)
    arguments = (ids, _empty((1000, 4), "float32"), given, ids, ids[:1], 0, 2, 256, out_type, target)
    pointers = dict.fromkeys(("seed", "num_timesteps"), ids[:1]) if captured else {}
    return partial(launch_diffuse, DiffuseCall(_empty(shape, dtype, layout), *arguments), **pointers)


def step_case(
    shape: tuple[int, ...],
    dtype: str,
    model: str | None = None,
    layout: str = "nchw",
    *,
    model_layout: str | None = None,
    learned_variance: bool = False,
    depth: int = 0,
    base: bool = False,
    pred: bool = False,
    noise: bool = False,
    per_sample: bool = False,
    captured: bool = False,
) -> Callable[[], object]:
    """A launch of step with a state [B, C, ...] of type `dtype` and a model's output of type `model`."""
    x = _empty(shape, dtype, layout)
    model_shape = (shape[0], 2 * shape[1], *shape[2:]) if learned_variance else shape
    ids = _empty(shape[:1], "int64")
    call = StepCall(
        x,
        _empty(model_shape, model or dtype, model_layout or layout),
        _empty((100, ROW_WIDTH), "float32"),
        ids if per_sample else ids[:1],
        torch.empty_like(x) if noise else None,
        ids,
        0,
        learned_variance,
        torch.empty_like(x) if base else None,
        new_history(x, depth) if depth else None,
        torch.empty_like(x) if pred else None,
        x,
    )
    pointers = dict.fromkeys(("seed", "num_rows"), ids[:1]) if captured else {}
    return partial(launch_step, call, **pointers)


def select_case(
    shape: tuple[int, ...], dtype: str, network: str | None = None, layout: str = "nhwc", *, channels: int = 8
) -> Callable[[], object]:
    """A launch of select with a state [B, C, H, W] of type `dtype` for a network of type `network`."""
    x = _empty(shape, dtype, "nchw")
    scaled = _empty((shape[0], channels, *shape[2:]), network or dtype, layout)
    one, rows = _empty((1,), "int64"), _empty((100, ROW_WIDTH), "float32")
    options = {"times": _empty((100, 1, 5504), "float32"), "vector": _empty((1, 5504), network or dtype)}
    options |= {"t": _empty((100,), "float32"), "time": _empty((1,), "float32"), "num_rows": one}
    return partial(launch_select, x, rows, one, scaled, **options)


CIFAR = (64, 3, 32, 32)
LATENT = (64, 4, 32, 32)
SHIPPED: dict[str, Callable[[], object]] = {
    "diffuse float32": diffuse_case(CIFAR, "float32"),
    "diffuse float32, x_t only": diffuse_case(CIFAR, "float32", target=False),
    "diffuse float32, given noise": diffuse_case(CIFAR, "float32", noise=True),
    "diffuse bfloat16": diffuse_case(CIFAR, "bfloat16"),
    "diffuse float16": diffuse_case(CIFAR, "float16"),
    "diffuse uint8 to float32": diffuse_case(CIFAR, "uint8", "float32"),
    "diffuse uint8 to bfloat16": diffuse_case(CIFAR, "uint8", "bfloat16"),
    "diffuse float32 nhwc": diffuse_case(CIFAR, "float32", layout="nhwc"),
    "diffuse bfloat16 nhwc": diffuse_case(CIFAR, "bfloat16", layout="nhwc"),
    "diffuse uint8 to bfloat16 nhwc": diffuse_case(CIFAR, "uint8", "bfloat16", layout="nhwc"),
    "diffuse float32 nhwc, 4 channels": diffuse_case(LATENT, "float32", layout="nhwc"),
    "diffuse float32, 28x28": diffuse_case((64, 1, 28, 28), "float32"),
    "diffuse float32, 5x7": diffuse_case((64, 3, 5, 7), "float32"),
    "diffuse float32 nhwc, 5x7": diffuse_case((64, 3, 5, 7), "float32", layout="nhwc"),
    "step float32": step_case(CIFAR, "float32"),
    "step bfloat16": step_case(CIFAR, "bfloat16"),
    "step float16": step_case(CIFAR, "float16"),
    "step float32, bfloat16 model": step_case(CIFAR, "float32", "bfloat16"),
    "step float32, learned variance": step_case(CIFAR, "float32", learned_variance=True),
    "step float32, row per sample": step_case(CIFAR, "float32", per_sample=True),
    "step float32, given noise": step_case(CIFAR, "float32", noise=True),
    "step float32, history 3, base, pred": step_case(CIFAR, "float32", depth=3, base=True, pred=True),
    "step float32, nhwc model": step_case(CIFAR, "float32", model_layout="nhwc"),
    "step float32 nhwc": step_case(CIFAR, "float32", layout="nhwc"),
    "step bfloat16 nhwc": step_case(CIFAR, "bfloat16", layout="nhwc"),
    "step float32 nhwc, bfloat16 model": step_case(CIFAR, "float32", "bfloat16", layout="nhwc"),
    "step float32 nhwc, learned variance": step_case(CIFAR, "float32", layout="nhwc", learned_variance=True),
    "step float32 nhwc, history 3, base, pred": step_case(
        CIFAR, "float32", layout="nhwc", depth=3, base=True, pred=True
    ),
    "step float32 nhwc, nchw model": step_case(CIFAR, "float32", layout="nhwc", model_layout="nchw"),
    "step float32 nhwc, 4 channels": step_case(LATENT, "float32", layout="nhwc"),
    "step float32 nhwc, 5x7": step_case((64, 3, 5, 7), "float32", layout="nhwc"),
    "diffuse bfloat16 nhwc, captured": diffuse_case(CIFAR, "bfloat16", layout="nhwc", captured=True),
    "step float32 nhwc, captured": step_case(CIFAR, "float32", layout="nhwc", captured=True),
    "step float32, captured": step_case(CIFAR, "float32", captured=True),
    "select float32 to bfloat16": select_case(CIFAR, "float32", "bfloat16"),
    "select float32": select_case(CIFAR, "float32", channels=4),
    "select float32 to float16 nchw": select_case(CIFAR, "float32", "float16", "nchw", channels=3),
    "step float32, 7 billion elements": step_case((1, 3, 48000, 48000), "float32"),
    "step float32 nhwc, 7 billion elements": step_case((1, 3, 48000, 48000), "float32", layout="nhwc"),
    **GROUP_NORM_CASES,
    **ATTENTION_CASES,
    **LOSS_CASES,
    **CONV_CASES,
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--target", choices=TARGETS, default="sm_90")
    parser.add_argument("--only", default="", help="configurations whose name has this in it")
    options = parser.parse_args()
    cases = SHIPPED | {name: case for preset in PRESETS for name, case in preset_cases(preset).items()}
    print(f"{options.target}, Triton {triton.__version__}")
    print("loads and stores: bytes per thread and instruction x count, those of ids, rows and coefficients included")
    heads = ("registers", "spills", "shared", "instructions")
    print(
        f"{'kernel and configuration':50s}"
        + "".join(f"{head:>13s}" for head in heads)
        + "  loads; stores; asynchronous loads; matrix"
    )
    for name, launch in cases.items():
        if options.only not in name:
            continue
        for kernel in compile_launches(launch, options.target):
            r = inspect(kernel)
            cells = "".join(f"{cell:13d}" for cell in (r.registers, r.spills, r.shared, r.instructions))
            counts = "; ".join(_counts(counter) for counter in (r.loads, r.stores, r.async_loads, r.matrix))
            print(f"{name:50s}{cells}  {counts}", flush=True)


def _counts(counts: Counter[Any]) -> str:
    return " ".join(f"{kind}x{count}" for kind, count in sorted(counts.items(), reverse=True))


if __name__ == "__main__":
    main()
