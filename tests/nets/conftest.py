"""Both families of U-Nets, on one thread."""

from collections.abc import Iterator

import pytest
import torch

from fastdiff.nets.config import UNetConfig
from support.unet_cases import CONFIGS


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> UNetConfig:
    return CONFIGS[request.param]
