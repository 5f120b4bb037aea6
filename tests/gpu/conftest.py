"""What only a GPU can show: dispatch to the Triton launchers, autograd through them, CUDA graphs.

The kernels' values are tests/kernels/interpreter's, which run on a GPU as well where TRITON_INTERPRET is not set.
"""

import pytest
import torch


@pytest.fixture
def cuda():
    """The device of every test here."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; a skip here is not a pass")
    return torch.device("cuda")
