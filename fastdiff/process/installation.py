"""Whether the package's folder is its own: the package index has another `fastdiff`, which installs into the same one.

The other compares texts. pip knows the two as different distributions, `fastdiff` and `fastdiff-ddpm`, and writes one
over the other without a word; taking the other out again takes the files that both have.
"""

from __future__ import annotations

import warnings
from pathlib import Path

__all__ = ["REMEDY", "WrongPackage", "check_folder"]

# Files of the other package, in all of its versions, that this one does not have.
_THEIRS = ("fastdiff.wasm", "_native.py", "compare.py")

REMEDY = (
    "the package index's `fastdiff` is another package, which compares texts: "
    "`pip uninstall -y fastdiff fastdiff-ddpm`, then `pip install fastdiff-ddpm`"
)
"""What is wrong, and what to type."""


class WrongPackage(ImportError):
    """The folder of the package has lost files to another package of its name."""


def check_folder(folder: Path) -> None:
    """Look whether another package has written into a package's folder, in some 20 microseconds.

    Args:
        folder: Where the package is installed.

    Warns:
        UserWarning: the other's files are there, and so is this package's first file, so that all of it works.

    Raises:
        WrongPackage: this package's first file is the other's, or is gone with it.
    """
    face = folder / "__init__.py"
    if not face.exists():
        # Programs that are frozen into one file, and compiled installations, have none of the sources.
        if (folder / "version.py").exists():
            raise WrongPackage(f"{face} is missing, as if another package had been uninstalled over it; {REMEDY}")
        return
    if not any((folder / name).exists() for name in _THEIRS):
        return
    if b"_FORMER_MODULES" not in face.read_bytes():
        raise WrongPackage(f"{face} is not of fastdiff-ddpm; {REMEDY}")
    warnings.warn(f"{folder} holds files of two packages; {REMEDY}", stacklevel=2)
