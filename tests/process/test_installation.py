"""Whose folder it is."""

import shutil
import timeit
from pathlib import Path

import pytest

import fastdiff
from fastdiff.process.installation import REMEDY, WrongPackage, check_folder

OURS = Path(fastdiff.__file__)


@pytest.fixture
def folder(tmp_path):
    for name in ("__init__.py", "version.py"):
        shutil.copy(OURS.with_name(name), tmp_path)
    return tmp_path


def test_a_folder_of_its_own_passes(folder):
    check_folder(folder)
    check_folder(OURS.parent)


@pytest.mark.parametrize("name", ["fastdiff.wasm", "_native.py", "compare.py"])
def test_files_of_the_other_package_are_warned_of(folder, name):
    (folder / name).touch()
    with pytest.warns(UserWarning, match="holds files of two packages") as caught:
        check_folder(folder)
    assert REMEDY in str(caught[0].message)


def test_the_other_package_in_its_place_is_an_error(folder):
    (folder / "compare.py").touch()
    (folder / "__init__.py").write_text("from .compare import compare\n")
    with pytest.raises(WrongPackage, match="is not of fastdiff-ddpm"):
        check_folder(folder)


def test_a_package_without_its_first_file_is_an_error(folder):
    (folder / "__init__.py").unlink()
    with pytest.raises(WrongPackage, match="is missing"):
        check_folder(folder)
    # A frozen program has no sources at all.
    (folder / "version.py").unlink()
    check_folder(folder)
    check_folder(folder / "nowhere")


def test_the_look_costs_an_import_nothing():
    # Seconds; a millisecond would already be more than it may cost.
    assert min(timeit.repeat(lambda: check_folder(OURS.parent), number=1, repeat=20)) < 1e-3
