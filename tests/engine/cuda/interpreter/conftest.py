"""The CUDA engine's launches under Triton's interpreter (TRITON_INTERPRET=1) or, where there is one, on a GPU.

The interpreter must be chosen before Triton is imported, so `tests/engine/cuda/test_interpreter.py` runs this folder in
its own process. With neither interpreter nor GPU nothing here is collected.
"""

import os

import pytest
import torch

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
collect_ignore_glob = [] if INTERPRETED or torch.cuda.is_available() else ["test_*.py"]


@pytest.fixture(scope="session")
def device():
    return torch.device("cpu" if INTERPRETED else "cuda")
