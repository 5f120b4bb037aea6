"""The package index's `fastdiff` in the same environment: what is said, whichever came first."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Theirs, of version 0.3.0, without its WebAssembly; FASTDIFF_OTHER_PACKAGE names the true file.
FILES = {
    "fastdiff/__init__.py": "from .compare import compare\n__version__ = '0.1.0'\n__all__ = ['compare']\n",
    "fastdiff/compare.py": "from ._base import compare\n__all__ = ['compare']\n",
    "fastdiff/_base.py": "def compare(first, second):\n    return []\n",
    "fastdiff/_native.py": "",
    "fastdiff/fastdiff.wasm": "",
    "fastdiff-0.3.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: fastdiff\nVersion: 0.3.0\n",
    "fastdiff-0.3.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py2.py3-none-any\n",
}
WHAT_TO_TYPE = "`pip uninstall -y fastdiff fastdiff-ddpm`, then `pip install fastdiff-ddpm`"


@pytest.fixture
def other(tmp_path):
    if "FASTDIFF_OTHER_PACKAGE" in os.environ:
        return Path(os.environ["FASTDIFF_OTHER_PACKAGE"])
    path = tmp_path / "fastdiff-0.3.0-py2.py3-none-any.whl"
    record = "".join(f"{name},,\n" for name in FILES) + "fastdiff-0.3.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in {**FILES, "fastdiff-0.3.0.dist-info/RECORD": record}.items():
            archive.writestr(name, text)
    return path


def test_it_installed_before_is_warned_of_and_all_works(wheel, environment, other):
    environment.install(other)
    environment.install(wheel)
    done = environment.call("python", "-c", "import fastdiff; print(fastdiff.NoiseSchedule.linear(1000).num_timesteps)")
    assert (done.returncode, done.stdout) == (0, "1000\n"), done.stderr
    assert "holds files of two packages" in done.stderr
    assert WHAT_TO_TYPE in done.stderr


def test_it_installed_afterwards_is_an_error(wheel, environment, other):
    environment.install(wheel)
    environment.install(other)
    done = environment.call("fastdiff", "info")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "is not of fastdiff-ddpm" in done.stderr
    assert WHAT_TO_TYPE in done.stderr
    for line in ("from fastdiff.pipeline import Pipeline", "from fastdiff import samplers"):
        done = environment.call("python", "-c", line)
        assert done.stderr.splitlines()[-1].startswith("fastdiff.process.installation.WrongPackage: ")


def test_it_uninstalled_takes_files_of_ours_along(wheel, environment, other):
    environment.install(other)
    environment.install(wheel)
    environment.uninstall("fastdiff")
    done = environment.call("python", "-m", "fastdiff")
    assert "__init__.py is missing" in done.stderr
    assert WHAT_TO_TYPE in done.stderr
    # What is advised mends it.
    environment.uninstall("fastdiff-ddpm")
    environment.install(wheel)
    done = environment.call("python", "-c", "import fastdiff; print(fastdiff.NoiseSchedule.linear(1000).num_timesteps)")
    assert (done.stdout, done.stderr) == ("1000\n", "")


def test_a_build_beside_it_is_refused(environment, other, tmp_path):
    environment.install(other)
    # setuptools of this Python, and the packages of that one.
    paths = os.pathsep.join([str(environment.packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("the package index's `fastdiff`")
    assert "`pip uninstall -y fastdiff` first" in done.stderr
