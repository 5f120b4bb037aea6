"""step on the CPU: the way over one stretch of memory and the way tile by tile give the same bits."""

import pytest
import torch

from fastdiff import ops
from fastdiff.process.table import ROW_FIELDS, ROW_WIDTH
from support.tolerances import FLOAT32_SUM

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

SHAPES = [(1, 1), (2, 63), (3, 3, 33, 31), (2, 5, 45, 45), (4, 3, 32, 32)]
COLUMNS = ("px", "pm", "cx", "cb", "cm", "c0", "c1", "c2", "c3", "bx", "bb", "bm", "b0", "b1", "b2", "b3")


def rows_of(names, dtype, *, save=False, s=0.0):
    """Two rows in which only the named coefficients are not 0; no table, whose first row could read no past."""
    rows = torch.zeros(2, ROW_WIDTH, dtype=torch.float64)
    generator = torch.Generator().manual_seed(1)
    for name in COLUMNS:
        values = torch.rand(2, generator=generator, dtype=torch.float64) + 0.1
        if name in names:
            rows[:, ROW_FIELDS.index(name)] = values
    for name, value in {
        "clip": 0.8,
        "evaluate": 1.0,
        "push": 1.0,
        "save_base": float(save),
        "slot": 1.0,
        "s": s,
    }.items():
        rows[:, ROW_FIELDS.index(name)] = value
    return rows.to(dtype)


def tensors(shape, dtype):
    generator = torch.Generator().manual_seed(2)
    return [torch.randn(shape, generator=generator, dtype=dtype) for _ in range(7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("px", "pm", "cx", "c0"), id="plain"),
        pytest.param(("pm", "cx", "cm"), id="no prediction in the state"),
        pytest.param(("px", "pm", "cx", "c0", "c1"), id="one past"),
        pytest.param(("pm", "cx", "c0", "c1", "c2", "c3"), id="three past"),
        pytest.param(("px", "pm", "cb", "c0"), id="base read"),
        pytest.param(("px", "pm", "cx", "c0", "bx"), id="base saved"),
        pytest.param(COLUMNS, id="everything"),
    ],
)
def test_step_flat_equals_tiles(names, shape, dtype):
    save = any(name.startswith("b") for name in names)
    rows = rows_of(names, dtype, save=save)
    x, m, base, *past = tensors(shape, dtype)
    wide = torch.cat([m, m], dim=1)
    results = []
    for output in (m, wide):
        # An output of twice the channels is not one stretch of memory: the tiles take it.
        slots = {"base": base.clone(), "history": torch.stack(past[:3]), "pred_out": torch.full_like(x, torch.nan)}
        out = ops.step(x, output, rows, 1, implementation="cpu", **slots)
        results.append((out, *slots.values()))
    for flat, tiled in zip(*results, strict=True):
        assert torch.equal(flat, tiled)
    by_reference = {"base": base.clone(), "history": torch.stack(past[:3]), "pred_out": torch.full_like(x, torch.nan)}
    expected = ops.step(x, m, rows, 1, implementation="reference", **by_reference)
    for ours, theirs in zip(results[0], (expected, *by_reference.values()), strict=True):
        assert torch.allclose(ours, theirs, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


@pytest.mark.parametrize("layout", ["flat", "tiles"])
def test_step_in_place_with_history_and_base(layout):
    """Each element is read before it is written, also where the pushed prediction takes the oldest one's place."""
    rows = rows_of(COLUMNS, torch.float32, save=True)
    x, m, base, *past = tensors((3, 3, 33, 31), torch.float32)
    output = m if layout == "flat" else torch.cat([m, m], dim=1)
    fresh = {"base": base.clone(), "history": torch.stack(past[:3])}
    expected = ops.step(x, output, rows, 0, **fresh)
    same = {"base": base.clone(), "history": torch.stack(past[:3])}
    assert torch.equal(ops.step(x, output, rows, 0, out=x, **same), expected)
    assert all(torch.equal(same[name], fresh[name]) for name in same)


@pytest.mark.parametrize("noise", [False, True])
def test_step_flat_does_not_depend_on_the_batch(noise):
    rows = rows_of(("px", "pm", "cx", "c0"), torch.float32, s=0.5 * noise)
    rows[:, ROW_FIELDS.index("push")] = 0
    x, m, z, *_ = tensors((5, 3, 17, 19), torch.float32)
    whole = ops.step(x, m, rows, 0, noise=z)
    for i in range(5):
        assert torch.equal(ops.step(x[i : i + 1], m[i : i + 1], rows, 0, noise=z[i : i + 1]), whole[i : i + 1])
