"""Run a table with given noise, in float64, through the op itself."""

import numpy as np
import torch

from fastdiff import ops


def toy_model(x, t):
    """A smooth nonlinear stand-in for a network, the same for every scheduler."""
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *[1] * (x.ndim - 1))
    return 0.6 * x + 0.3 * torch.sin(2 * x + t / 300)


def execute(table, model, x, noise=None):
    """The final state, from the first state x [B, ...]; noise is [R, B, ...] or None for a deterministic table."""
    x = x.double()
    rows = ops.table_rows(table, dtype=torch.float64)
    base = torch.zeros_like(x) if table.uses_base else None
    history = ops.new_history(x, table.history_depth) if table.history_depth else None
    for r in range(len(table)):
        t = torch.full((x.shape[0],), float(table["t"][r]), dtype=torch.float64)
        m = model(float(table["ci"][r]) * x, t) if table["evaluate"][r] else None
        z = torch.zeros_like(x) if noise is None else noise[r].double()
        x = ops.step(x, m, rows, r, noise=z, base=base, history=history)
    return x


def linear_row(table, row, x, m, z):
    pred = np.clip(table["px"][row] * x + table["pm"][row] * m, -table["clip"][row], table["clip"][row])
    return table["cx"][row] * x + table["cm"][row] * m + table["c0"][row] * pred + table["s"][row] * z


# Two float64 runs that order their sums otherwise; coefficients reach 1e4 where alpha is small.
SAME_RUN = 1e-9


def close(a, b, tolerance=SAME_RUN):
    scale = max(1.0, float(np.abs(np.asarray(b)).max()))
    np.testing.assert_allclose(np.asarray(a) / scale, np.asarray(b) / scale, rtol=0, atol=tolerance)
