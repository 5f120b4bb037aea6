"""diffuse and step: C++ against the reference, the reference against float64 formulas and closed forms."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from fastdiff import (
    CoefficientTable,
    Diffusion,
    NoiseSchedule,
    ops,
    samplers,
)
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from fastdiff.process.table import ROW_FIELDS
from support.tolerances import FLOAT32, NORMAL_ULP, STORAGE

SHAPES = [
    (1, 1, 1, 1),
    (2, 3, 5, 7),
    (3, 1, 8, 8),
    (2, 3, 32, 32),
    (2, 5, 9, 13),
    (1, 70, 6, 11),
    (2, 130, 3, 3),
    (4, 2),
    (2, 3, 1100),
]
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
IMPLEMENTATIONS = ["reference", "cpu"]
DIFFUSION = Diffusion(NoiseSchedule.linear(100, 1e-3, 0.2), "v")


def images(shape, dtype=torch.float32, layout="nchw", seed=0):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1
    x = x.to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def noising_table(dtype=torch.float32, diffusion=DIFFUSION):
    return torch.tensor(diffusion.noising_table(), dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def relative_error(ours, exact):
    return float((ours.double() - exact).abs().max() / exact.abs().max().clamp(min=1))


def all_cases(function):
    function = pytest.mark.parametrize("layout", FORMATS)(function)
    function = pytest.mark.parametrize("dtype", DTYPES)(function)
    return pytest.mark.parametrize("shape", SHAPES, ids=str)(function)


def exact_diffuse(x0, t, seed, ids, rows, stream, table):
    """float64 in NumPy, from the noise contract's NumPy implementation and the rounded coefficients."""
    n = int(np.prod(x0.shape[1:]))
    z = noise.normals(seed, ids, n, stream, rows).astype(np.float64).reshape(x0.shape)
    c = table.double().numpy()[t.numpy()].T.reshape(4, -1, *[1] * (x0.ndim - 1))
    x = x0.double().numpy()
    return torch.from_numpy(c[0] * x + c[1] * z), torch.from_numpy(c[2] * x + c[3] * z)


@all_cases
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_matches_its_formula(shape, dtype, layout, implementation):
    x0 = images(shape, DTYPES[dtype], layout)
    batch = shape[0]
    t = torch.arange(batch) * 7 % 100
    ids, rows = torch.arange(batch) * 3 + 2**33, torch.arange(batch) + 5
    table = noising_table(DTYPES[dtype])
    x_t, target = ops.diffuse(
        x0, t, table, seed=2**63 + 1, sample_ids=ids, row=rows, stream=4, implementation=implementation
    )
    expected = exact_diffuse(x0, t, 2**63 + 1, ids.numpy(), rows.numpy(), 4, table)
    for ours, exact in zip((x_t, target), expected, strict=True):
        assert ours.dtype == x0.dtype
        assert ours.shape == x0.shape
        assert ours.stride() == torch.empty_like(x0, memory_format=ops.memory_format(x0)).stride()
        # float64 results hold float32 noise: one float32 rounding of it.
        tolerance = 1e-6 if dtype == "float64" else STORAGE[dtype]
        assert relative_error(ours, exact) <= tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("layout", FORMATS)
def test_diffuse_scales_bytes(implementation, levels, layout):
    v = torch.randint(0, levels, (3, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    v = v.contiguous(memory_format=FORMATS[layout])
    t = torch.tensor([0, 50, 99])
    x_t, target = ops.diffuse(v, t, noising_table(), seed=3, levels=levels, implementation=implementation)
    assert x_t.dtype == torch.float32
    expected = exact_diffuse(2 * v.double() / (levels - 1) - 1, t, 3, range(3), 0, Stream.TRAIN_NOISE, noising_table())
    assert relative_error(x_t, expected[0]) < FLOAT32
    assert relative_error(target, expected[1]) < FLOAT32
    options = {"seed": 3, "levels": levels, "implementation": implementation}
    half, _ = ops.diffuse(v, t, noising_table(), dtype=torch.bfloat16, **options)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected[0]) < STORAGE["bfloat16"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("noise_layout", FORMATS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("noise_dtype", ["float32", "bfloat16", "float16"])
def test_diffuse_takes_given_noise(implementation, layout, noise_layout, noise_dtype):
    x0, z = images((2, 3, 4, 6), layout=layout), images((2, 3, 4, 6), DTYPES[noise_dtype], noise_layout, seed=5)
    t = torch.tensor([3, 80])
    x_t, target = ops.diffuse(x0, t, noising_table(), noise=z, implementation=implementation)
    c = noising_table().double()[t].T.reshape(4, 2, 1, 1, 1)
    assert relative_error(x_t, c[0] * x0.double() + c[1] * z.double()) < FLOAT32
    assert relative_error(target, c[2] * x0.double() + c[3] * z.double()) < FLOAT32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_can_leave_the_target_out(implementation):
    x0, t = images((2, 3, 4, 4)), torch.tensor([1, 2])
    both = ops.diffuse(x0, t, noising_table(), implementation=implementation)
    one = ops.diffuse(x0, t, noising_table(), target=False, implementation=implementation)
    assert torch.equal(both[0], one[0])
    assert one[1].numel() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_of_strided_views_and_empty_batches(implementation):
    x0 = images((4, 6, 8, 8))[::2, 1::2, :, ::2]
    t = torch.tensor([1, 2])
    x_t, _ = ops.diffuse(x0, t, noising_table(), implementation=implementation)
    assert torch.equal(x_t, ops.diffuse(x0.contiguous(), t, noising_table(), implementation=implementation)[0])
    empty, _ = ops.diffuse(x0[:0], t[:0], noising_table(), implementation=implementation)
    assert empty.shape == (0, 3, 8, 4)
    nothing, _ = ops.diffuse(x0[:, :0], t, noising_table(), implementation=implementation)
    assert nothing.shape == (2, 0, 8, 4)


def test_diffuse_normals_are_within_ulps_of_the_contract():
    table = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    z, _ = ops.diffuse(
        torch.zeros(8, 1, 512, 512), torch.zeros(8, dtype=torch.int64), table, seed=9, implementation="cpu"
    )
    exact = noise.normals(9, range(8), 512 * 512, Stream.TRAIN_NOISE, 0).reshape(z.shape)
    assert (np.abs(z.numpy().astype(np.float64) - exact) <= NORMAL_ULP * np.spacing(np.abs(exact))).all()


def test_diffuse_gradients_are_the_coefficients():
    x0 = images((3, 2, 2, 2), torch.float64).requires_grad_()
    z = images((3, 2, 2, 2), torch.float64, seed=2).requires_grad_()
    t = torch.tensor([0, 40, 99])

    def run(x0, z):
        return ops.diffuse(x0, t, noising_table(torch.float64), noise=z)

    assert torch.autograd.gradcheck(run, (x0, z))
    assert torch.autograd.gradcheck(lambda x0: run(x0, z.detach())[0], (x0,))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("row", [-1, 2**28])
def test_diffuse_refuses_rows_out_of_range(implementation, row):
    with pytest.raises(IndexError, match=rf"row must be in \[0, {2**28}\), got {row}"):
        ops.diffuse(
            images((1, 1, 2, 2)),
            torch.tensor([0]),
            noising_table(),
            row=torch.tensor([row]),
            implementation=implementation,
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_row_without_an_evaluation_ignores_the_variance(implementation):
    """Such a row's noise is plain: what stands in the model's output is of another row, or NaN."""
    table = CoefficientTable(
        {"t": [1.0], "evaluate": [0], "cx": [1.0], "s": [0.5], "log_min": [-3.0], "log_max": [-1.0]}
    )
    x = torch.zeros(1, 1, 4, 4)
    nan = torch.full((1, 2, 4, 4), torch.nan)
    rows = ops.table_rows(table)
    out = ops.step(x, nan, rows, 0, learned_variance=True, noise=torch.ones_like(x), implementation=implementation)
    assert torch.equal(out, torch.full_like(x, 0.5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("t", [-1, 100])
def test_diffuse_refuses_t_out_of_range(implementation, t):
    with pytest.raises(IndexError, match=rf"t must be in \[0, 100\), got {t}"):
        ops.diffuse(images((2, 1, 2, 2)), torch.tensor([0, t]), noising_table(), implementation=implementation)


BAD_DIFFUSE = {
    "integers": ({"x0": torch.zeros(2, 1, 2, 2, dtype=torch.int32)}, "uint8 or floating"),
    "short t": ({"t": torch.tensor([1])}, "t must be int64"),
    "float t": ({"t": torch.tensor([1.0, 2.0])}, "t must be int64"),
    "float64 table": ({"table": noising_table(torch.float64)}, "table must be"),
    "narrow table": ({"table": torch.zeros(4, 3)}, "table must be"),
    "t elsewhere": ({"t": torch.tensor([1, 2], device="meta")}, "on cpu, got .* on meta"),
    "table elsewhere": ({"table": noising_table().to("meta")}, "on cpu .* on meta"),
    "one level": ({"levels": 1}, "levels"),
    "stream": ({"stream": 16}, "stream"),
    "seed": ({"seed": -1}, "seed"),
    "row": ({"row": 2**28}, "row"),
    "row shape": ({"row": torch.tensor([1, 2, 3])}, "row must be"),
    "ids": ({"sample_ids": torch.tensor([1])}, "sample_ids must be"),
    "noise": ({"noise": torch.zeros(2, 1, 2, 3)}, "noise must be"),
    "dtype": ({"dtype": torch.float64}, "float64 goes with float64"),
    "implementation": ({"implementation": "cuda"}, "implementation must be"),
}


@pytest.mark.parametrize("case", BAD_DIFFUSE)
def test_diffuse_refuses(case):
    options, message = BAD_DIFFUSE[case]
    arguments = {"x0": images((2, 1, 2, 2)), "t": torch.tensor([1, 2]), "table": noising_table()} | options
    with pytest.raises(ValueError, match=message):
        ops.diffuse(**arguments)


def full_table():
    """Every column in use: rows that read the history and the base, one without an evaluation, a learned variance."""
    rng = np.random.default_rng(0)
    columns = {name: rng.uniform(-1, 1, 6) for name in ROW_FIELDS[:-1]}
    columns |= {"t": np.arange(6.0)[::-1], "clip": [0.5, np.inf, 1, 2, 0.1, 3], "s": [0, 0.5, 1, 0.2, 0.3, 0]}
    columns |= {"evaluate": [1, 1, 1, 1, 0, 1], "save_base": [1, 0, 1, 0, 1, 1], "push": [1, 1, 1, 0, 0, 1]}
    columns |= {"log_min": [-2.0] * 6, "log_max": [-0.5] * 6}
    pushes = np.array([0, 1, 2, 3, 3, 3])
    for k in (1, 2, 3):
        for letter in "cb":
            columns[f"{letter}{k}"] = np.where(pushes >= k, columns[f"{letter}{k}"], 0)
    for name in ("cb", "bb"):
        columns[name][0] = 0
    for name in ("px", "pm", "cm", "c0", "bm", "b0"):
        columns[name][4] = 0
    return CoefficientTable(columns)


def exact_steps(table, x, outputs, seed, ids, learned):
    """The table's formula in float64 NumPy, with plain lists for the slots: yields (x', base, newest prediction)."""
    channels = x.shape[1]
    base, past = None, []
    rows = table.rows().astype(np.float64)
    for r in range(len(table)):
        k = dict(zip(ROW_FIELDS, rows[r], strict=False))
        out = outputs[r].double().numpy()
        m, v = out[:, :channels], (out[:, channels:] + 1) / 2
        if not k["evaluate"]:
            m = 0 * m
        pred = np.clip(k["px"] * x + k["pm"] * m, -k["clip"], k["clip"])
        z = noise.normals(seed, ids, int(np.prod(x.shape[1:])), Stream.SAMPLING, r).reshape(x.shape).astype(np.float64)
        scale = k["s"] * (np.exp(0.5 * (v * k["log_max"] + (1 - v) * k["log_min"])) if learned and k["evaluate"] else 1)

        def combine(letter, k=k, x=x, m=m, pred=pred, base=base):
            total = k[f"{letter}x"] * x + k[f"{letter}m"] * m + k[f"{letter}0"] * pred
            if base is not None:
                total = total + k[f"{letter}b"] * base
            for age, p in enumerate(reversed(past), start=1):
                total = total + (k[f"{letter}{age}"] * p if age <= 3 else 0)
            return total

        x_next, base_next = combine("c") + scale * z, combine("b")
        if k["save_base"]:
            base = base_next
        if k["push"]:
            past.append(pred)
        x = x_next
        yield x, base, pred


@all_cases
@pytest.mark.parametrize("learned", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_matches_the_formula_in_every_slot(shape, dtype, layout, learned, implementation):
    table = full_table()
    kind = DTYPES[dtype]
    x = images(shape, kind, layout)
    rows = ops.table_rows(table, dtype=kind).to(torch.float32).to(kind if kind == torch.float64 else torch.float32)
    doubled = (shape[0], 2 * shape[1], *shape[2:])
    outputs = [images(doubled, kind, layout, seed=r + 1) for r in range(len(table))]
    ids = torch.arange(shape[0]) + 2**32
    base, history, pred = torch.full_like(x, torch.nan), ops.new_history(x, 3).fill_(torch.nan), torch.empty_like(x)
    exact = exact_steps(table, x.double().numpy(), outputs, 5, ids.numpy(), learned)
    for r, (x_exact, base_exact, pred_exact) in enumerate(exact):
        x = ops.step(
            x, outputs[r], rows, r, seed=5, sample_ids=ids, learned_variance=learned, base=base, history=history,
            pred_out=pred, implementation=implementation,
        )  # fmt: skip
        tolerance = {"float64": 1e-6, "float32": 2e-6}.get(dtype, 6 * STORAGE[dtype])
        assert relative_error(x, torch.from_numpy(x_exact)) <= tolerance
        assert relative_error(base, torch.from_numpy(base_exact)) <= tolerance
        assert relative_error(pred, torch.from_numpy(pred_exact)) <= tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("output_layout", FORMATS)
def test_step_runs_samples_at_different_rows(implementation, layout, output_layout):
    """A batch of samples at rows 5, 2 and 4 equals three batches of one, in-place slots included."""
    table = full_table()
    rows = ops.table_rows(table)
    x, m = images((3, 2, 5, 3), layout=layout), images((3, 2, 5, 3), layout=output_layout, seed=2)
    at, ids = torch.tensor([5, 2, 4]), torch.tensor([7, 8, 9])
    base, history = images((3, 2, 5, 3), layout=layout, seed=3), ops.new_history(x, 3)
    history.copy_(torch.stack([images(x.shape, seed=s) for s in (4, 5, 6)]))
    separate = []
    for i in range(3):
        one_base, one_history = base[i : i + 1].clone(), history[:, i : i + 1].clone()
        one_history = ops.new_history(x[i : i + 1], 3).copy_(one_history)
        out = ops.step(x[i : i + 1], m[i : i + 1], rows, int(at[i]), seed=1, sample_ids=ids[i : i + 1], base=one_base,
                       history=one_history, implementation=implementation)  # fmt: skip
        separate.append((out, one_base, one_history))
    out = ops.step(x, m, rows, at, seed=1, sample_ids=ids, base=base, history=history, implementation=implementation)
    assert torch.equal(out, torch.cat([s[0] for s in separate]))
    assert torch.equal(base, torch.cat([s[1] for s in separate]))
    assert torch.equal(history, torch.cat([s[2] for s in separate], dim=1))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("layout", FORMATS)
def test_step_in_place_equals_out_of_place(implementation, layout):
    rows = ops.table_rows(samplers.ddpm(DIFFUSION, 10))
    x, m = images((3, 3, 9, 5), layout=layout), images((3, 3, 9, 5), layout=layout, seed=2)
    fresh = ops.step(x, m, rows, 4, seed=1, implementation=implementation)
    same = ops.step(x, m, rows, 4, seed=1, out=x, implementation=implementation)
    assert same is x
    assert torch.equal(fresh, x)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_does_not_read_slots_with_zero_coefficients(implementation):
    table = CoefficientTable({"t": [1.0, 0.0], "cx": [0.5, 0.5], "c0": [0.0, 0.0], "push": [1, 1], "c1": [0.0, 1.0],
                              "save_base": [1, 1], "cb": [0.0, 1.0]})  # fmt: skip
    x = images((2, 2, 3, 3))
    nan = torch.full_like(x, torch.nan)
    out = ops.step(x, nan, ops.table_rows(table), 0, base=nan.clone(), history=ops.new_history(x, 1).fill_(torch.nan),
                   noise=nan, implementation=implementation)  # fmt: skip
    assert torch.equal(out, 0.5 * x)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_does_not_hide_nan_from_the_model(implementation):
    rows = ops.table_rows(samplers.ddpm(DIFFUSION, 10))
    m = images((1, 1, 4, 4))
    m[0, 0, 1, 2] = torch.nan
    out = ops.step(images((1, 1, 4, 4)), m, rows, 9, implementation=implementation)
    assert torch.isnan(out).nonzero().tolist() == [[0, 0, 1, 2]]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_reads_the_first_half_of_a_wide_output(implementation):
    rows = ops.table_rows(samplers.ddim(DIFFUSION, 10))
    x, wide = images((2, 3, 4, 4)), images((2, 6, 4, 4), layout="nhwc", seed=3)
    a = ops.step(x, wide, rows, 2, implementation=implementation)
    b = ops.step(x, wide[:, :3].contiguous(), rows, 2, implementation=implementation)
    assert torch.equal(a, b)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("row", [-1, 10])
def test_step_refuses_rows_out_of_range(implementation, row):
    rows, x = ops.table_rows(samplers.ddpm(DIFFUSION, 10)), images((2, 1, 2, 2))
    with pytest.raises(IndexError, match=rf"row must be in \[0, 10\), got {row}"):
        ops.step(x, x, rows, torch.tensor([0, row]), implementation=implementation)


X = images((2, 3, 4, 4))
BAD_STEP = {
    "integers": ({"x": X.int()}, "state must be"),
    "no channels": ({"x": X[:, 0, 0, 0]}, "state must be"),
    "grad": ({"x": X.clone().requires_grad_()}, "inference only"),
    "rows": ({"rows": torch.zeros(3, 31)}, "rows must be"),
    "rows dtype": ({"rows": torch.zeros(3, 32, dtype=torch.float64)}, "rows must be"),
    "rows elsewhere": ({"rows": torch.zeros(3, 32, device="meta")}, "on cpu .* on meta"),
    "channels": ({"model_output": X[:, :2]}, "model's output must have shape"),
    "size": ({"model_output": X[:, :, :2]}, "model's output must have shape"),
    "integer output": ({"model_output": X.int()}, "floating point"),
    "no variance": ({"learned_variance": True}, "model's output must have shape"),
    "no output": ({"learned_variance": True, "model_output": None}, "needs the model's output"),
    "base dtype": ({"base": X.half()}, "base must be"),
    "base layout": ({"base": X.contiguous(memory_format=torch.channels_last)}, "memory format"),
    "out shape": ({"out": X[:1]}, "out must be"),
    "history": ({"history": X}, "history must be"),
    "history depth": ({"history": torch.zeros(4, *X.shape)}, "history must be"),
    "ids dtype": ({"sample_ids": torch.tensor([0, 1], dtype=torch.int32)}, "sample_ids must be"),
    "row dtype": ({"row": torch.tensor([0.0])}, "row must be"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_STEP)
def test_step_refuses(case):
    options, message = BAD_STEP[case]
    arguments = {"x": X, "model_output": X, "rows": ops.table_rows(samplers.ddpm(DIFFUSION, 10)), "row": 0} | options
    with pytest.raises(ValueError, match=message):
        ops.step(**arguments)


def test_ops_pass_opcheck():
    x = images((2, 3, 4, 4))
    rows = ops.table_rows(full_table())
    ids, row = torch.arange(2), torch.tensor([3])
    wide = images((2, 6, 4, 4))
    slots = (torch.zeros_like(x), torch.zeros(3, *x.shape), torch.zeros_like(x), torch.zeros_like(x))
    torch.library.opcheck(torch.ops.fastdiff.step.default, (x, wide, rows, row, None, ids, 5, True, *slots))
    torch.library.opcheck(
        torch.ops.fastdiff.step.default, (x, None, rows, row, x.clone(), ids, 5, False, None, None, None, slots[3])
    )
    t = torch.tensor([3, 99])
    for image in (
        x.clone().requires_grad_(),
        x.contiguous(memory_format=torch.channels_last),
        torch.zeros(2, 3, 4, 4).byte(),
    ):
        for want_target in (True, False):
            arguments = (image, t, noising_table(), None, ids, row, -1, 2, 256, torch.float32, want_target)
            torch.library.opcheck(torch.ops.fastdiff.diffuse.default, arguments)


def test_ops_compile_without_graph_breaks():
    table = noising_table()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def run(x, t):
        return ops.diffuse(x, t, table, seed=3, row=1)

    x, t = images((2, 3, 4, 4)), torch.tensor([0, 50])
    for ours, expected in zip(run(x, t), ops.diffuse(x, t, table, seed=3, row=1), strict=True):
        assert torch.equal(ours, expected)


def test_step_compiles_without_graph_breaks():
    rows = ops.table_rows(samplers.ddpm(DIFFUSION, 10))
    x, m, row = images((2, 3, 4, 4)), images((2, 3, 4, 4), seed=1), torch.tensor([4])

    def run(x, m):
        return ops.step(x, m, rows, row, seed=3)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, m), run(x, m))


@pytest.mark.parametrize("compiled", [False, True])
def test_ops_keep_their_types_under_autocast(compiled):
    """The table and the state are float32, and a network under autocast gives bfloat16."""
    rows, table = ops.table_rows(samplers.ddpm(DIFFUSION, 10)), noising_table()
    layer = torch.nn.Conv2d(3, 3, 1)
    x, t, row = images((2, 3, 4, 4)), torch.tensor([3, 99]), torch.tensor([4])

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            x_t, target = ops.diffuse(x, t, table, seed=3, row=1)
            m = layer(x_t)
            return x_t, target, m, ops.step(x, m.detach(), rows, row, seed=3)

    results = (torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run)(x)
    assert [v.dtype for v in results] == [torch.float32, torch.float32, torch.bfloat16, torch.float32]
    expected = ops.step(x, results[2].detach(), rows, row, seed=3)
    assert torch.equal(results[3], expected)
    assert torch.equal(results[0], ops.diffuse(x, t, table, seed=3, row=1)[0])


@pytest.mark.parametrize("isa", ["generic", "avx2", "avx512"])
def test_ops_agree_between_instruction_sets(isa):
    """The variant is chosen once per process, so each gets its own, with the comparisons to the formulas."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    if isa != "generic" and ("avx512dq" if isa == "avx512" else "avx2") not in flags:
        pytest.skip(f"this CPU has no {isa}; the other variants are tested")
    code = f"""
import torch, fastdiff._C
assert fastdiff._C.cpu_isa() == {isa!r}
import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[1])!r}]
import test_diffuse as t
for layout in t.FORMATS:
    for dtype in t.DTYPES:
        for shape in t.SHAPES[1:6]:
            t.test_diffuse_matches_its_formula(shape, dtype, layout, "cpu")
            t.test_step_matches_the_formula_in_every_slot(shape, dtype, layout, True, "cpu")
t.test_diffuse_normals_are_within_ulps_of_the_contract()
t.test_step_does_not_hide_nan_from_the_model("cpu")
"""
    environment = os.environ | {"FASTDIFF_CPU_ISA": isa}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr[-3000:]


def test_ops_refuse_an_unknown_instruction_set():
    environment = os.environ | {"FASTDIFF_CPU_ISA": "mmx"}
    code = "import torch, fastdiff._C; fastdiff._C.cpu_isa()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "FASTDIFF_CPU_ISA must be one of" in run.stderr


def test_ops_run_the_reference_with_one_warning_when_nothing_is_built():
    """Hide the extension; results stay right, one warning names the build command, and asking by name raises."""
    code = """
import sys, warnings
sys.modules["fastdiff._C"] = None
import torch
from fastdiff import Diffusion, NoiseSchedule, ops
table = torch.tensor(Diffusion(NoiseSchedule.cosine(10)).noising_table(), dtype=torch.float32)
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    for _ in range(3):
        ops.diffuse(torch.zeros(1, 1, 2, 2), torch.tensor([3]), table)
assert [str(w.message) for w in seen if "build it with" in str(w.message)].__len__() == 1, seen
try:
    ops.diffuse(torch.zeros(1, 1, 2, 2), torch.tensor([3]), table, implementation="cpu")
except RuntimeError as error:
    assert "pip install" in str(error)
else:
    raise AssertionError("no error")
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_ops_extension_is_loaded_here():
    """The suite is about the compiled kernels; a suite that silently ran the reference would prove nothing."""
    assert ops.has_extension(), ops.EXTENSION_ERROR
