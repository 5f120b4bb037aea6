"""Runs on one thread and without TensorBoard."""

import sys
from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One thread: tiny networks on busy cores wait for each other. No TensorBoard: it is slow to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)
