"""Makes a bare checkout importable, without installing anything: also a pytest plugin (`-p checkout`).

In an installed fastdiff the folder kernels/ is `fastdiff.kernels`; here that name is made by hand.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def use() -> None:
    """Import fastdiff from this checkout, and its kernels from their folder."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    if importlib.util.find_spec("fastdiff.kernels") is not None:
        return
    folder = ROOT / "kernels"
    spec = importlib.util.spec_from_file_location(
        "fastdiff.kernels", folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["fastdiff.kernels"] = module
    spec.loader.exec_module(module)
    importlib.import_module("fastdiff").__dict__["kernels"] = module


use()
