"""The wheel, in fresh environments: it installs and samples without a compiler, and holds what it should."""

import re
import zipfile
from email import message_from_string

import pytest

import fastdiff as fd
from support.command_line import small_model

# Of the file; what is compiled is two thirds of it.
MAX_BYTES = 5e6


@pytest.fixture
def model(tmp_path):
    return small_model(tmp_path / "model", size=8, channels=1)


def test_wheel_samples_where_no_compiler_is(wheel, environment, model):
    environment.install(wheel)
    ask = "import shutil, fastdiff, torch; print(fastdiff.__file__, torch.__version__, shutil.which('c++'))"
    where, version, compiler = environment.works("python", "-c", ask).split()
    assert where.startswith(str(environment.packages))
    assert compiler == "None"
    told = environment.works("fastdiff", "info")
    # What pip knows of a build has not its local part.
    assert version.partition("+")[0] in told
    assert re.search(r"C\+\+ extension\s+built, uses (generic|avx2|avx512)", told)
    environment.works("fastdiff", "sample", model, "--num", "4", "--sampler", "ddim", "--steps", "4", "--out", "a.png")
    assert (environment.bin.parent / "a.png").read_bytes().startswith(b"\x89PNG")
    # On a processor without AVX the extension loads and runs as well.
    again = ["fastdiff", "sample", model, "--num", "4", "--steps", "2", "--out", "b.png"]
    environment.works(*again, FASTDIFF_CPU_ISA="generic")


def test_wheel_is_for_all_pythons_and_every_linux_of_pytorch(wheel):
    assert wheel.name == f"fastdiff_ddpm-{fd.__version__}-cp311-abi3-manylinux_2_28_x86_64.whl"


def test_wheel_holds_the_package_alone(wheel):
    assert wheel.stat().st_size < MAX_BYTES
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        metadata = message_from_string(archive.read(f"fastdiff_ddpm-{fd.__version__}.dist-info/METADATA").decode())
    assert {name.split("/")[0] for name in names} == {"fastdiff", f"fastdiff_ddpm-{fd.__version__}.dist-info"}
    libraries = [name for name in names if ".so" in name]
    assert libraries == ["fastdiff/_C.abi3.so"]
    for needed in ("py.typed", "kernels/step.py", "serving/page/index.html", "ops/reference/step.py"):
        assert f"fastdiff/{needed}" in names
    assert metadata["License-Expression"] == "MIT"
    assert metadata["Requires-Python"] == ">=3.11"
    assert "torch>=2.10" in metadata.get_all("Requires-Dist")
