"""Packed weights and code: the layout that the executor reads."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import ops
from fastdiff.engine.pack import ALGORITHMS, CODE_FIELDS, PANEL

needs_extension = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

# Filter transforms, Lavin and Gray (2016), section 4; in bfloat16 at the points 0, +-2/3, +-3/2 and infinity.
FOUR = [
    [1 / 4, 0, 0],
    [-1 / 6] * 3,
    [-1 / 6, 1 / 6, -1 / 6],
    [1 / 24, 1 / 12, 1 / 6],
    [1 / 24, -1 / 12, 1 / 6],
    [0, 0, 1],
]
FOUR_IN_BFLOAT16 = [
    [1, 0, 0],
    [-81 / 130, -54 / 130, -36 / 130],
    [-81 / 130, 54 / 130, -36 / 130],
    [16 / 130, 24 / 130, 36 / 130],
    [16 / 130, -24 / 130, 36 / 130],
    [0, 0, 1],
]
TWO = [[1, 0, 0], [1 / 2] * 3, [1 / 2, -1 / 2, 1 / 2], [0, 0, 1]]


def test_code_layout_is_that_of_the_executor():
    header = (Path(__file__).parents[2] / "csrc" / "include" / "plan_layout.h").read_text()
    struct = re.search(r"struct Instruction \{(.*?)\};", header, re.DOTALL)[1]
    fields = [name.strip() for line in re.findall(r"int64_t ([^;]*);", struct) for name in line.split(",")]
    assert tuple(fields) == CODE_FIELDS


def packed(weight, algorithm, pairs):
    """What C++ makes of it, [panels, points, C, PANEL] float32; columns behind the last one are zero."""
    channels_out, channels, taps = weight.shape
    points = {"winograd4": 36, "winograd2": 16}.get(algorithm, taps)
    panels, words = -(-channels_out // PANEL), -(-channels // 2) if pairs else channels
    out = torch.zeros(panels * points * words * PANEL)
    torch.ops.fastdiff.plan_pack(weight, out, ALGORITHMS.index(algorithm), pairs)
    parts = out.view(torch.bfloat16).view(-1, words, PANEL, 2).transpose(2, 3) if pairs else out.view(-1, words, PANEL)
    rows = parts.reshape(panels * points, -1, PANEL).float()
    assert not rows[:, channels:].any()
    rows = rows[:, :channels]
    return rows.view(panels, points, channels, PANEL) if algorithm == "direct" else rows.view(
        points, panels, channels, PANEL
    ).transpose(0, 1)  # fmt: skip


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pairs", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize(("channels_out", "channels"), [(64, 16), (70, 17), (1, 1), (200, 40), (16, 33)])
def test_packed_weights_are_those_of_float64(channels_out, channels, algorithm, pairs, dtype):
    """To the rounding of the type: half a unit of its last place, and what float64's own errors move over a tie."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(channels_out, channels, 9, generator=generator, dtype=dtype)
    kernels = weight.double().numpy().reshape(channels_out, channels, 3, 3)
    if algorithm != "direct":
        g = np.array(TWO if algorithm == "winograd2" else FOUR_IN_BFLOAT16 if pairs else FOUR)
        kernels = np.einsum("ay,oiyx,bx->oiab", g, kernels, g)
    exact = kernels.reshape(channels_out, channels, -1)
    found = packed(weight, algorithm, pairs).permute(0, 3, 2, 1).flatten(0, 1).double().numpy()
    assert not found[channels_out:].any()
    # Relative to the largest number of a binade, where a unit is largest.
    half_unit = (2.0**-9 if pairs else 2.0**-24) * (1 + 2.0**-14)
    assert (np.abs(found[:channels_out] - exact) <= half_unit * 2 * np.abs(exact) + 1e-15).all()


@needs_extension
@pytest.mark.parametrize(("kernel", "channels"), [(1, 40), (7, 3), (2, 5)])
@pytest.mark.parametrize("pairs", [False, True], ids=["float32", "bfloat16"])
def test_packed_weights_of_any_kernel_are_its_taps(kernel, channels, pairs):
    weight = torch.randn(70, channels, kernel**2, generator=torch.Generator().manual_seed(0))
    found = packed(weight, "direct", pairs).permute(0, 3, 2, 1).flatten(0, 1)[:70]
    assert torch.equal(found, weight.bfloat16().float() if pairs else weight)


@needs_extension
@pytest.mark.parametrize(
    ("shape", "dtype", "algorithm", "size", "message"),
    [
        ((4, 3, 9), torch.float16, 0, 9 * 3 * 64, "float32 or float64"),
        ((4, 3, 50), torch.float32, 0, 50 * 3 * 64, "49 taps at most"),
        ((4, 3, 4), torch.float32, 1, 36 * 3 * 64, "for 9 taps"),
        ((4, 3, 9), torch.float32, 3, 9 * 3 * 64, "for 9 taps"),
        ((4, 3, 9), torch.float32, 1, 9 * 3 * 64, r"packed must be float32 \[6912\]"),
    ],
)
def test_weights_that_cannot_be_packed_are_refused(shape, dtype, algorithm, size, message):
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastdiff.plan_pack(torch.zeros(shape, dtype=dtype), torch.zeros(size), algorithm, False)


DIGESTS = """
import hashlib, torch, fastdiff.engine, fastdiff._C
weight = 0.02 * torch.randn(200, 40, 9, generator=torch.Generator().manual_seed(0))
weight[0] = 0
for points, algorithm, pairs in ((36, 1, False), (36, 1, True), (16, 2, False)):
    packed = torch.zeros(points * 4 * (40 // (2 if pairs else 1)) * 64)
    torch.ops.fastdiff.plan_pack(weight, packed, algorithm, pairs)
    print(hashlib.sha256(packed.numpy().tobytes()).hexdigest())
"""


@needs_extension
@pytest.mark.slow
def test_packed_weights_are_the_same_with_every_instruction_set():
    found = {}
    for isa in ("generic", "avx2", "avx512"):
        environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
        done = subprocess.run([sys.executable, "-c", DIGESTS], capture_output=True, text=True, env=environment)
        if "must be one of" not in done.stderr:
            assert done.returncode == 0, done.stderr[-3000:]
            found[isa] = done.stdout
    assert len(set(found.values())) == 1, found
