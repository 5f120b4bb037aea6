"""denoising-diffusion-pytorch for the live tests, without what it imports and the tests do not use.

It is installed with `--no-deps`: torchvision, accelerate and pytorch-fid would bring another PyTorch. What it imports
of them at the top of its modules is replaced by empty modules here; its networks and processes use none of it.
"""

import importlib
import sys
import types

import pytest

_ABSENT = ("torchvision", "torchvision.transforms", "torchvision.utils", "accelerate", "accelerate.utils")


def load():
    """The package, or a skip that says what is missing. The empty modules are gone again when it returns."""
    empty = []
    for name in _ABSENT:
        if name not in sys.modules:
            try:
                importlib.import_module(name)
            except ImportError:
                sys.modules[name] = _Anything(name)
                empty.append(name)
    try:
        return pytest.importorskip(
            "denoising_diffusion_pytorch",
            reason="pip install --no-deps denoising-diffusion-pytorch einops ema-pytorch",
            exc_type=ImportError,
        )
    finally:
        for name in empty:
            del sys.modules[name]


class _Anything(types.ModuleType):
    """A module in which every name exists, and nothing works."""

    def __init__(self, name):
        super().__init__(name)
        self.__path__ = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})
