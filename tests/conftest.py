"""Shared fixtures. Tests run on one thread: they hold values, not times, and share the machine with each other."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _few_threads():
    torch.set_num_threads(2)
