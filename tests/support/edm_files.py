"""Files as EDM's training writes them, by an imitation of `torch_utils.persistence`."""

import contextlib
import io
import pickle
import sys
import types

import numpy as np
import torch
from torch import nn

from support.edm_networks import SETTINGS, PlainEDM, plain

SOURCE = "import pathlib\npathlib.Path('{trap}').touch()\n"


def _reconstruct_persistent_obj(meta):
    raise AssertionError("a file's source text was about to be run")


@contextlib.contextmanager
def persistence():
    """The modules that such files name, while they are written."""
    module = types.ModuleType("torch_utils.persistence")
    package = types.ModuleType("torch_utils")
    package.persistence = module
    module._reconstruct_persistent_obj = _reconstruct_persistent_obj
    names = {"torch_utils": package, "torch_utils.persistence": module}
    function = _reconstruct_persistent_obj
    kept = function.__module__
    function.__module__ = "torch_utils.persistence"
    sys.modules.update(names)
    try:
        yield
    finally:
        function.__module__ = kept
        for name in names:
            del sys.modules[name]


class Precond(nn.Module):
    """What stands around a network in such a file; as `EDMPrecond` where nothing else is said."""

    def __init__(self, model, settings):
        super().__init__()
        self.model = model
        self._init_args, self._init_kwargs = (), settings
        self.sigma_data = np.float64(0.5)


class _Pickler(pickle.Pickler):
    def __init__(self, file, protocol, kind, source):
        super().__init__(file, protocol)
        self.kind, self.source = kind, source

    def reducer_override(self, value):
        # Their linear layers and norms are classes of their own as well.
        if not isinstance(value, nn.Module) or isinstance(value, nn.ModuleDict):
            return NotImplemented
        name = self.kind if isinstance(value, Precond) else type(value).__name__.removeprefix("_")
        meta = {"type": "class", "version": 6, "module_src": self.source, "class_name": name, "state": vars(value)}
        return _reconstruct_persistent_obj, (meta,), None


def write(path, case, kind="EDMPrecond", *, more=None, protocol=4, trap="", model=None):
    """A file with a small network of `support.edm_networks`; gives the network and its settings."""
    network, settings = SETTINGS[case]
    model = plain(case, torch.float32) if model is None else model
    given = {name: value for name, value in settings.items() if name not in ("in_channels", "out_channels")}
    given |= {"img_channels": 3, "model_type": network, "use_fp16": False, "dropout": 0.0} | (more or {})
    content = {"ema": Precond(model, given), "loss_fn": None, "augment_pipe": None, "dataset_kwargs": {"path": "x"}}
    file = io.BytesIO()
    with persistence():
        _Pickler(file, protocol, kind, SOURCE.format(trap=trap)).dump(content)
    path.write_bytes(file.getvalue())
    return model


def doubled(case):
    """The same with twice the output channels."""
    network, settings = SETTINGS[case]
    torch.manual_seed(0)
    return PlainEDM(network, **settings, out_channels=6).eval()
