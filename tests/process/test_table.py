"""CoefficientTable: invariants, the memory layout of a row, JSON."""

import re
from pathlib import Path

import numpy as np
import pytest

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule, samplers
from fastdiff.process.table import (
    COEFFICIENTS,
    DEFAULTS,
    FLAGS,
    ROW_FIELDS,
    ROW_WIDTH,
)


def test_table_rows_layout_is_that_of_the_kernels():
    header = (Path(__file__).parents[2] / "csrc" / "include" / "row_layout.h").read_text()
    fields = re.findall(r"ROW_([A-Z0-9_]+),", header.split("enum RowField")[1].split("}")[0])
    assert tuple(name.lower() for name in fields) == ROW_FIELDS
    assert int(re.search(r"ROW_WIDTH = (\d+)", header).group(1)) == ROW_WIDTH
    assert len(ROW_FIELDS) <= ROW_WIDTH


def test_table_rows_hold_the_columns():
    columns = {name: np.arange(1.0, 4.0) + i for i, name in enumerate(COEFFICIENTS)}
    columns |= {"push": [1.0, 1.0, 1.0], "save_base": [1.0, 1.0, 1.0]}
    for name in ("cb", "bb", "c1", "c2", "c3", "b1", "b2", "b3"):
        columns[name] = [0.0, 0.0, 0.0]
    columns["c1"] = columns["cb"] = [0.0, 5.0, 6.0]
    table = CoefficientTable(columns)
    rows = table.rows(np.float64)
    assert rows.shape == (3, ROW_WIDTH)
    for i, name in enumerate((*COEFFICIENTS, *FLAGS)):
        np.testing.assert_array_equal(rows[:, i], np.broadcast_to(columns.get(name, DEFAULTS[name]), 3))
    assert table.rows().dtype == np.float32


def test_table_history_ring_slots():
    """p_k lies k slots before the slot a row writes to; simulate the ring and compare with a plain list."""
    push = np.array([1, 0, 1, 1, 1, 0, 1, 1])
    count = np.concatenate([[0], np.cumsum(push)[:-1]])
    table = CoefficientTable({"t": np.arange(8.0)[::-1], "push": push, "c2": (count >= 2) * 1.0})
    assert table.history_depth == 2
    ring, past = [None, None], []
    slots = table.rows()[:, ROW_FIELDS.index("slot")].astype(int)
    assert (table.rows()[:, ROW_FIELDS.index("depth")] == 2).all()
    for row in range(8):
        for age in range(1, min(2, len(past)) + 1):
            assert ring[(slots[row] - age) % 2] == past[-age]
        if push[row]:
            ring[slots[row]] = row
            past.append(row)


def test_table_drops_pushes_and_saves_that_nobody_reads():
    rows = CoefficientTable({"t": [1.0, 0.0], "push": [1, 1], "save_base": [1, 1]}).rows()
    assert not rows[:, ROW_FIELDS.index("push")].any()
    assert not rows[:, ROW_FIELDS.index("save_base")].any()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "needs a column 't'"),
        ({"t": []}, "needs a column 't'"),
        ({"t": [1.0], "cy": [1.0]}, "unknown key 'cy'"),
        ({"t": [1.0], "cx": [1.0, 2.0]}, "must have 1 entries"),
        ({"t": [1.0], "cx": [np.nan]}, "cx must be finite"),
        ({"t": [1.0], "s": [np.inf]}, "s must be finite"),
        ({"t": [1.0], "clip": [np.nan]}, "clip must be finite"),
        ({"t": [1.0], "clip": [0.0]}, "clip must be positive"),
        ({"t": [1.0], "s": [-1.0]}, "must not be negative"),
        ({"t": [np.nan]}, "t must be finite"),
        ({"t": [1.0], "push": [2.0]}, "must be 0 or 1"),
        ({"t": [1.0], "cb": [1.0], "save_base": [1.0]}, "before any row saved it"),
        ({"t": [2.0, 1.0], "c1": [0.0, 1.0]}, "before 1 predictions"),
        ({"t": [2.0, 1.0], "push": [1.0, 1.0], "c2": [0.0, 1.0]}, "before 2 predictions"),
        ({"t": [1.0], "evaluate": [0.0], "pm": [1.0]}, "without an evaluation"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_table_refuses_broken_invariants(columns, message):
    with pytest.raises(ValueError, match=message):
        CoefficientTable(columns)


def test_table_refuses_levels_of_the_wrong_length():
    with pytest.raises(ValueError, match="alphas must have one entry per state"):
        CoefficientTable({"t": [1.0]}, alphas=[1.0])


def test_table_json_round_trip_is_exact():
    table = samplers.ddim(Diffusion(NoiseSchedule.cosine(100), "v"), 7, eta=0.3, clip=None)
    again = CoefficientTable.from_json(table.to_json())
    assert again == table
    np.testing.assert_array_equal(again.rows(np.float64), table.rows(np.float64))
    assert np.isinf(again["clip"]).all()


@pytest.mark.parametrize(
    "text", ["", "[1]", '{"format": 99, "columns": {}}', '{"columns": {"t": [1]}}', '{"colums": 1}']
)
def test_table_json_refuses_foreign_text(text):
    with pytest.raises(ValueError, match="coefficient table"):
        CoefficientTable.from_json(text)


def test_table_start_rows():
    table = CoefficientTable({"t": [2.0, 1.0, 0.0], "push": [1, 1, 0], "c1": [0.0, 1.0, 0.0]})
    table.check_start(0)
    table.check_start(2)
    table.check_start(3)
    with pytest.raises(ValueError, match="cannot start at row 1"):
        table.check_start(1)
    with pytest.raises(ValueError, match="from 0 to 3"):
        table.check_start(4)


def test_table_prints_and_plots():
    table = samplers.ddim(Diffusion(NoiseSchedule.cosine(100)), 4)
    lines = str(table).splitlines()
    assert len(lines) == 2 + 4
    assert "px" in lines[1]
    assert "cb" not in lines[1]
    ax = table.plot()
    assert {line.get_label() for line in ax.get_lines()} >= {"px", "pm", "cx", "c0"}


def test_table_plots_the_levels_it_visits():
    diffusion = Diffusion(NoiseSchedule.cosine(100))
    table = samplers.ddim(diffusion, 4)
    (line,) = table.plot_levels().get_lines()
    # Trailing: from t = 99 down, and the clean image is off the axis.
    alpha, sigma = diffusion.signal_noise()
    steps = [99, 74, 49, 24]
    np.testing.assert_allclose(line.get_ydata(), sigma[steps] / alpha[steps])
    with pytest.raises(ValueError, match="does not say which levels"):
        CoefficientTable({"t": [0.0]}, "mine").plot_levels()


def test_table_is_read_only():
    table = samplers.ddpm(Diffusion(NoiseSchedule.cosine(10)))
    with pytest.raises(ValueError, match="read-only"):
        table["cx"][0] = 1.0
