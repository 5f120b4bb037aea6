"""step: C++ against the reference, the reference against a float64 formula in every slot."""

import numpy as np
import pytest
import torch

from fastdiff import (
    CoefficientTable,
    ops,
    samplers,
)
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from fastdiff.process.table import ROW_FIELDS
from support.op_cases import DIFFUSION, DTYPES, FORMATS, IMPLEMENTATIONS, all_cases, full_table, images, relative_error
from support.tolerances import STORAGE


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


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_refuses_a_row_without_what_it_uses(implementation):
    rows = ops.table_rows(full_table())
    x = images((2, 3, 4, 4))
    slots = {"base": torch.zeros_like(x), "history": ops.new_history(x, 3).zero_()}
    ops.step(x, x, rows, 3, **slots, implementation=implementation)
    for missing, message in {
        ("base", None): "row 3 uses the saved state",
        ("history", None): "row 3 uses a history of 3 slots, got 0",
        ("history", 2): "row 3 uses a history of 3 slots, got 2",
    }.items():
        name, depth = missing
        given = slots | {name: None if depth is None else ops.new_history(x, depth).zero_()}
        with pytest.raises(ValueError, match=message):
            ops.step(x, x, rows, 3, **given, implementation=implementation)
    with pytest.raises(ValueError, match="row 3 reads the model's output"):
        ops.step(x, None, rows, 3, **slots, implementation=implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_step_refuses_a_ring_longer_than_the_tables(implementation):
    """A prediction of k rows ago lies k slots back: in a longer ring that is another slot."""
    table = samplers.dpmpp_2m(DIFFUSION, 5)
    x = images((2, 3, 4, 4))
    with pytest.raises(ValueError, match="uses a history of 1 slots, got 3"):
        ops.step(x, x, ops.table_rows(table), 2, history=ops.new_history(x, 3), implementation=implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("other", ["x", "model_output", "noise", "base", "pred_out", "history"])
def test_step_refuses_memory_that_overlaps_in_part(implementation, other):
    rows, memory = ops.table_rows(full_table()), torch.zeros(200)
    part = [memory[start : start + 96].view(2, 3, 4, 4) for start in (0, 16)]
    arguments = {name: torch.zeros(2, 3, 4, 4) for name in ("x", "model_output", "noise", "base", "pred_out")}
    arguments |= {"history": ops.new_history(part[0], 3).zero_(), "row": 3, "rows": rows}
    arguments |= {other: part[0], "out": part[1]}
    if other == "history":
        memory = torch.zeros(400)
        arguments |= {"history": memory[:288].view(3, 2, 3, 4, 4), "out": memory[250:346].view(2, 3, 4, 4)}
    with pytest.raises(ValueError, match="overlaps"):
        ops.step(**arguments, implementation=implementation)


def test_step_compiles_without_graph_breaks():
    rows = ops.table_rows(samplers.ddpm(DIFFUSION, 10))
    x, m, row = images((2, 3, 4, 4)), images((2, 3, 4, 4), seed=1), torch.tensor([4])

    def run(x, m):
        return ops.step(x, m, rows, row, seed=3)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x, m), run(x, m))
