"""The Triton kernels' values, under Triton's interpreter (TRITON_INTERPRET=1) or, where there is one, on a GPU.

The interpreter must be chosen before Triton is imported, so `tests/kernels/test_interpreter.py` runs this folder in its
own process. With neither interpreter nor GPU nothing here is collected.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """What a launcher allocates holds NaN, so that an element that no thread writes shows."""
    for name in ("empty", "empty_like"):
        allocate = getattr(torch, name)

        def poisoned(*args, allocate=allocate, **options):
            x = allocate(*args, **options)
            return x.fill_(torch.nan) if x.is_floating_point() else x

        monkeypatch.setattr(torch, name, poisoned)
