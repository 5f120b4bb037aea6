"""Tests of fastdiff.files.weights: the weights of a folder by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import fastdiff as fd
from fastdiff.files.checkpoint import load_model, save_described
from support.training_runs import trainer


def test_averages_are_found_however_their_number_is_written(tmp_path: Path) -> None:
    result = trainer(tmp_path, ema_decay=[0.5, 0.1], snapshot_every=3).run(until=3)
    model, averages = (load_file(result.checkpoint / f"{name}.safetensors") for name in ("model", "averages"))
    training = load_file(result.checkpoint / "training.safetensors")
    expected: dict[str | None, tuple[dict[str, Any], str]] = {
        None: (model, ""),
        "ema": (model, ""),
        "ema:0.5": (model, ""),
        "ema:.50": (model, ""),
        "ema:0.1": (averages, "ema:0.1/"),
        "ema:1e-1": (averages, "ema:0.1/"),
        "power:0.05": (averages, "power:0.05/"),
        "power:5e-2": (averages, "power:0.05/"),
        "raw": (training, "raw."),
    }
    for weights, (tensors, prefix) in expected.items():
        pipe = fd.Pipeline.from_pretrained(tmp_path, weights=weights)
        for name, parameter in pipe.unet.named_parameters():
            assert parameter.equal(tensors[prefix + name]), (weights, name)
        named = None if weights is None or ":" not in weights else f"{weights[: weights.index(':')]}:"
        assert (pipe.metadata["training"].get("average") or "").startswith(named or "")
        assert pipe.metadata["weights"] == ("raw" if weights == "raw" else "ema")


def test_a_copy_says_which_average_it_is(tmp_path: Path) -> None:
    trainer(tmp_path / "run", ema_decay=[0.5, 0.1]).run(until=1)
    save_described(tmp_path / "copy", load_model(tmp_path / "run", weights="ema:0.1"))
    copy = load_model(tmp_path / "copy")
    assert copy.metadata["weights"] == "ema"
    assert copy.metadata["training"]["average"] == "ema:0.1"


def test_averages_that_are_not_there_are_refused_with_those_that_are(tmp_path: Path) -> None:
    trainer(tmp_path / "run", ema_decay=[0.5, 0.1]).run(until=1)
    with pytest.raises(ValueError, match=r"has no average ema:0\.7, got weights='ema.*it has ema:0\.5, ema:0\.1, raw"):
        load_model(tmp_path / "run", weights="ema:0.7")
    save_described(tmp_path / "model", load_model(tmp_path / "run", weights="raw"))
    with pytest.raises(ValueError, match=r"has no average power:0\.1, .*; it has raw"):
        load_model(tmp_path / "model", weights="power:0.1")
    for weights in ("ema:", "ema:abc", "power", "mean:0.5", "ema-0.5"):
        with pytest.raises(ValueError, match=r"weights must be 'ema', 'raw' or None, or an average such as"):
            load_model(tmp_path / "run", weights=weights)


def test_another_projects_file_has_no_averages_by_name(tmp_path: Path) -> None:
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is of another project, so weights must be 'ema' or 'raw', got"):
        fd.Pipeline.from_pretrained(tmp_path / "model.safetensors", weights="ema:0.5")


def test_a_checkpoint_whose_averages_are_damaged_is_passed_over(tmp_path: Path) -> None:
    trainer(tmp_path, ema_decay=[0.5, 0.1]).run(until=4)
    path = tmp_path / "checkpoints" / "step_00000004" / "averages.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=r"averages\.safetensors is damaged"):
        assert trainer(tmp_path, ema_decay=[0.5, 0.1]).step == 2
    with pytest.raises(ValueError, match=r"averages\.safetensors is damaged"):
        load_model(path.parent, weights="ema:0.1")
