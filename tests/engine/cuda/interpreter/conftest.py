"""The CUDA engine's launches under Triton's interpreter (TRITON_INTERPRET=1) or, where there is one, on a GPU.

The interpreter must be chosen before Triton is imported, so `tests/engine/cuda/test_interpreter.py` runs this folder in
its own process. With neither interpreter nor GPU nothing here is collected.
"""

import os

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _rounded_bfloat16(monkeypatch):
    """Round to bfloat16 as a GPU does: the interpreter truncates, which in a whole network is three times the error."""
    if not INTERPRETED:
        return
    convert = interpreter._convert_float

    def rounded(values, source, target, mode):
        if (source, target) != (tl.float32, tl.bfloat16):
            return convert(values, source, target, mode)
        bits = torch.from_numpy(np.ascontiguousarray(values)).to(torch.bfloat16).view(torch.int16)
        return bits.numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
