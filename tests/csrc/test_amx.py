"""Products on the tiles of AMX, by a model of its instructions: FASTDIFF_CPU_ISA=avx512amxmodel, in its own process.

No machine of the project has AMX. The model is C++ under the code that runs on tiles; here it is held to Intel's manual
in NumPy, to the bit, and all instructions over it to float64.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import ops
from support.engine_networks import inputs, network
from support.tolerances import ENGINE_INSTRUCTION

MODEL = "avx512amxmodel"
ROOT = Path(__file__).parents[2]
WORDS = 16
# Input channels, output channels, pixels: whole tiles, tails of each, more than a panel, one tile and two of rows.
SHAPES = [(64, 64, 32), (32, 16, 1), (70, 70, 41), (17, 33, 9), (1, 200, 17), (160, 130, 33), (512, 48, 300)]
TINY = 2.0**-126

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

BITS = """
import sys
sys.path.insert(0, "tests")
import numpy as np, torch, fastdiff._C
from support.engine_instructions import run_pointwise
cases = np.load(sys.argv[1])
found = {name: run_pointwise(*map(torch.from_numpy, (cases[f"x{name}"], cases[f"w{name}"]))).numpy()
         for name in cases["names"]}
np.savez(sys.argv[2], **found)
print(fastdiff._C.cpu_isa())
"""

CHECKS = """
import sys
sys.path.insert(0, "tests")
import torch, fastdiff as fd, fastdiff._C
torch.set_num_threads(1)
from support.by_path import load

half, engine = load("engine/test_bfloat16"), load("engine/test_native")
for case in half.CONVOLUTIONS:
    for batch in (1, 5):
        half.test_convolution_in_bfloat16_is_near_float64(case, batch > 1, batch)
for case in half.DIRECT:
    half.test_products_of_bfloat16_numbers_are_exact(case, 2)
for tokens, heads, size in half.ATTENTIONS:
    half.test_attention_in_bfloat16_is_near_float64(tokens, heads, size)
for tokens, width in (((4, 4), 64), ((1, 1), 16), ((5, 13), 48), ((8, 9), 272)):
    half.test_attention_with_keys_of_its_own_in_bfloat16_is_near_float64(tokens, width)
for case in ("ho", "adm"):
    half.test_bfloat16_is_as_near_to_float64_as_pytorchs(case, (20, 12))
for case in ("ho", "iddpm", "one head of 40 channels"):
    engine.test_native_does_not_depend_on_batch_or_threads(case, "bfloat16")
net = half.network("ho")
x, t, _ = half.inputs(net)
fd.compile(net, precision="bfloat16", cache=sys.argv[1])(x, t)
print(fastdiff._C.cpu_isa())
"""


def run(code, *arguments, isa=MODEL):
    """What a process with that instruction set prints; skips where the processor has no AVX-512."""
    environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    if "must be one of" in done.stderr:
        pytest.skip(f"this processor does not run {isa}")
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout.strip()


def flushed(values):
    return np.where(np.abs(values) < TINY, np.copysign(np.float32(0), values), values).astype(np.float32)


def tdpbf16ps(sums, rows, columns):
    """Operation of TDPBF16PS. sums: [M, N] float32; rows: [M, 2 K]; columns: [2 K, N], both bfloat16 numbers.

    A product of two such numbers has 16 bits, so that float64 holds it and, but for its 54th bit, the sum.
    """
    parts = [np.zeros_like(sums), np.zeros_like(sums)]
    for k in range(rows.shape[1]):
        product = flushed(rows[:, k, None]).astype(np.float64) * flushed(columns[k])
        parts[k % 2] = flushed((product + parts[k % 2]).astype(np.float32))
    return flushed(flushed(sums) + flushed(parts[0] + parts[1]))


def expected(x, weight):
    """[M, C] times [N, C] transposed, a tile of sixteen pairs after the other."""
    sums = np.zeros((x.shape[0], weight.shape[0]), np.float32)
    for first in range(0, x.shape[1], 2 * WORDS):
        some = slice(first, first + 2 * WORDS)
        sums = tdpbf16ps(sums, x[:, some], weight[:, some].T)
    return sums


def bfloat16_numbers(generator, *shape, scale=1.0):
    return (scale * torch.randn(*shape, generator=generator)).bfloat16().float().numpy()


def test_sums_are_those_of_the_manual_to_the_bit(tmp_path):
    """Every shape once with usual numbers, and once with such whose products and sums are subnormal now and then."""
    generator = torch.Generator().manual_seed(0)
    cases = {}
    for channels, channels_out, pixels in SHAPES:
        for kind, scale in (("usual", 1.0), ("tiny", 2.0**-63.5)):
            name = f"{kind}-{channels}-{channels_out}-{pixels}"
            cases[f"x{name}"] = bfloat16_numbers(generator, pixels, channels, scale=scale)
            cases[f"w{name}"] = bfloat16_numbers(generator, channels_out, channels, scale=scale)
    # Subnormal numbers count as zeros.
    cases["xsubnormal"] = bfloat16_numbers(generator, 20, 40, scale=2.0**-126)
    cases["wsubnormal"] = bfloat16_numbers(generator, 20, 40, scale=2.0**60)
    names = [name[1:] for name in cases if name.startswith("x")]
    np.savez(tmp_path / "cases.npz", names=names, **cases)
    assert run(BITS, tmp_path / "cases.npz", tmp_path / "found.npz") == MODEL
    found = np.load(tmp_path / "found.npz")
    for name in names:
        x, weight = cases[f"x{name}"], cases[f"w{name}"]
        assert np.array_equal(found[name], expected(x, weight)), name
        if "usual" in name:
            exact = x.astype(np.float64) @ weight.T.astype(np.float64)
            assert np.abs(found[name] - exact).max() < ENGINE_INSTRUCTION * np.abs(exact).max(), name


@pytest.mark.slow
def test_instructions_and_networks_on_tiles_are_near_float64(tmp_path):
    """All convolutions and attentions, whole networks, batches and threads; packed weights are those of any machine."""
    net = network("ho")
    x, t, _ = inputs(net)
    fd.compile(net, precision="bfloat16", cache=tmp_path)(x, t)
    (packed,) = tmp_path.iterdir()
    assert run(CHECKS, tmp_path) == MODEL
    assert list(tmp_path.iterdir()) == [packed]


def test_the_model_is_never_chosen_by_itself():
    import fastdiff._C

    chosen = run("import torch, fastdiff._C; print(fastdiff._C.cpu_isa())", isa="")
    assert chosen != MODEL
    if "FASTDIFF_CPU_ISA" not in os.environ:
        assert chosen == fastdiff._C.cpu_isa()


@pytest.mark.skipif(shutil.which("g++") is None or shutil.which("objdump") is None, reason="no g++ or no objdump")
def test_tiles_are_instructions_of_the_processor(tmp_path):
    """What is compiled where there is no model."""
    source = """
        #include "avx512amx.h"
        #include "gemm_amx_impl.h"
        using namespace fastdiff::FD_VARIANT;
        void run(const TileSource* sources, const int64_t* taps, const float* b, float* sums) {
          const TilesInUse in_use;
          configure_tiles(16);
          multiply_block<2, 2>(sources, taps, 1, 32, b, 64, Ahead{}, sums);
        }
    """
    command = ["g++", "-std=c++20", "-O3", "-Wno-psabi", "-c", "-x", "c++", "-", "-o", str(tmp_path / "tiles.o")]
    folders = [f"-I{ROOT / 'csrc' / name}" for name in ("include", "cpu")]
    subprocess.run([*command, *folders], input=source, text=True, check=True)
    code = subprocess.run(["objdump", "-d", tmp_path / "tiles.o"], capture_output=True, text=True, check=True).stdout
    for name in ("ldtilecfg", "tileloadd", "tilezero", "tilestored", "tilerelease"):
        assert name in code, name
    used = {line.split("tdpbf16ps")[1].split("#")[0].strip() for line in code.splitlines() if "tdpbf16ps" in line}
    columns_rows_sums = [("%tmm6", "%tmm4", "%tmm0"), ("%tmm6", "%tmm5", "%tmm2")]
    columns_rows_sums += [("%tmm7", "%tmm4", "%tmm1"), ("%tmm7", "%tmm5", "%tmm3")]
    assert used == {",".join(names) for names in columns_rows_sums}
