"""What fastdiff runs on: versions that are installed, the machine's own words, and devices that are there."""

import importlib.metadata
import platform

import pytest
import torch

import fastdiff
from fastdiff import ops
from fastdiff.cli import environment


def test_versions_are_the_installed_ones(monkeypatch):
    found = environment.versions()
    assert found["fastdiff"] == fastdiff.__version__
    assert found["python"] == platform.python_version()
    assert found["torch"].split("+")[0] == torch.__version__.split("+")[0]

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert environment.versions()["triton"] is None


def test_extension_is_named_by_its_instruction_set_where_it_is_built(monkeypatch):
    if ops.has_extension():
        assert environment.extension() in ("generic", "avx2", "avx512", "avx512bf16", "avx512amx")
    monkeypatch.setattr(ops, "has_extension", lambda: False)
    assert environment.extension() is None


def test_machine_has_a_name_cores_and_memory(monkeypatch):
    found = environment.machine()
    assert found["cpu"]
    assert found["cores"] >= 1
    assert found["threads"] == torch.get_num_threads()
    # Bytes: between a small board and a large server.
    assert 1 << 28 < found["memory_bytes"] < 1 << 46
    assert len(found["gpus"]) == torch.cuda.device_count()


@pytest.mark.parametrize(
    ("name", "there", "expected"),
    [("auto", True, "cuda"), ("auto", False, "cpu"), ("cpu", True, "cpu"), ("cuda:1", True, "cuda:1")],
)
def test_devices_are_taken_by_name(monkeypatch, name, there, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert environment.resolve_device(name) == expected


@pytest.mark.parametrize(
    ("name", "said"),
    [("cuda", "PyTorch finds no GPU: use cpu"), ("gpu", "unknown device 'gpu'"), ("meta", "unknown device 'meta'")],
)
def test_other_devices_are_refused(monkeypatch, name, said):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=said):
        environment.resolve_device(name)


def test_torch_report_is_what_pytorch_gathers(monkeypatch):
    from torch.utils import collect_env

    monkeypatch.setattr(collect_env, "get_pretty_env_info", lambda: "gathered")
    assert environment.torch_report() == "gathered"


def test_settings_tell_no_key(monkeypatch):
    monkeypatch.setenv("FASTDIFF_API_KEY", "a secret")
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    found = environment.settings()
    assert found["FASTDIFF_API_KEY"] == "(set)"
    assert found["OMP_NUM_THREADS"] == "3"
    assert "PATH" not in found
