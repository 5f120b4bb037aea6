"""The images, types, layouts and tables that the tests of diffuse and step share."""

import numpy as np
import pytest
import torch

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule
from fastdiff.process.table import COEFFICIENTS, FLAGS

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


def full_table():
    """Every column in use: rows that read the history and the base, one without an evaluation, a learned variance."""
    rng = np.random.default_rng(0)
    columns = {name: rng.uniform(-1, 1, 6) for name in (*COEFFICIENTS, *FLAGS)}
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
