"""torch-fidelity as a peer, also where torchvision is missing: the functions that are compared with do not use it."""

import importlib
import sys
from unittest import mock

import pytest

TORCHVISION = ("torchvision", "torchvision.datasets", "torchvision.transforms", "torchvision.transforms.functional")


def fidelity(module):
    """A module of torch-fidelity; skips the test where it is not installed."""
    pytest.importorskip("tqdm", reason="torch-fidelity needs tqdm")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        stand_ins = {name: mock.MagicMock() for name in TORCHVISION}
    else:
        stand_ins = {}
    with mock.patch.dict(sys.modules, stand_ins):
        try:
            return importlib.import_module(f"torch_fidelity.{module}")
        except ModuleNotFoundError as error:
            if error.name != "torch_fidelity":
                raise
            pytest.skip("torch-fidelity is not installed")
