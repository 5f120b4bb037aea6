"""Tests of fastdiff.training.posthoc. Independent oracle: averages over the weights of every step of a run."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fastdiff as fd
from fastdiff.files.snapshots import list_snapshots, read_snapshot
from fastdiff.training.posthoc import reconstruct, save_average
from fastdiff.training.profiles import exponent
from support.training_runs import trainer

STEPS, EVERY = 36, 3
# Float32 averages that were updated 36 times, and sums of them with weights of about 1.
ROUNDINGS = 40 * 2**-24


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """A run, and its weights after each step, float64 [steps, ...]."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("posthoc") / "run"
    run = trainer(folder, steps=STEPS, snapshot_every=EVERY, checkpoint_every=100)
    kept: dict[str, list[Tensor]] = {name: [] for name, _ in run.unet.named_parameters()}

    def keep(step: int) -> None:
        for name, parameter in run.unet.named_parameters():
            kept[name].append(parameter.detach().double().clone())

    run.run(on_step=keep)
    return folder, {name: torch.stack(values) for name, values in kept.items()}


def average(values: Tensor, step: int, width: float) -> Tensor:
    """The integral of the profile times the weights, which are constant between steps."""
    edges = (torch.arange(step + 1, dtype=torch.float64) / step) ** (exponent(width) + 1)
    return torch.tensordot(edges.diff(), values[:step], dims=1)


@pytest.mark.parametrize(("width", "step"), [(0.05, STEPS), (0.1, STEPS), (0.1, 18), (0.05, EVERY)])
def test_an_average_that_was_tracked_is_itself(
    history: tuple[Path, dict[str, Tensor]], width: float, step: int
) -> None:
    folder, weights = history
    made = reconstruct(folder, width, step=step)
    assert (made.error, made.num_snapshots, made.step) == (0.0, 1, step)
    [path] = [path for number, path in list_snapshots(folder) if number == step]
    stored = read_snapshot(path).tensors()
    for name, value in made.tensors.items():
        assert torch.equal(value, stored[f"power:{width}/{name}"])
        torch.testing.assert_close(value.double(), average(weights[name], step, width), rtol=0, atol=ROUNDINGS)


@pytest.mark.parametrize(("width", "step"), [(0.04, STEPS), (0.07, STEPS), (0.15, STEPS), (0.2, STEPS), (0.12, 24)])
def test_another_average_is_what_it_would_have_been_within_its_error(
    history: tuple[Path, dict[str, Tensor]], width: float, step: int
) -> None:
    folder, weights = history
    made = reconstruct(folder, width, step=step)
    gamma = exponent(width)
    assert 0 < made.error <= 0.1
    off, moved = 0.0, 0.0
    for name, value in made.tensors.items():
        expected = average(weights[name], step, width)
        spread = (weights[name] - weights[name].mean(dim=0)).square().sum(dim=0).sqrt()
        bound = made.error * (gamma + 1) / math.sqrt((2 * gamma + 1) * step) * spread
        wrong = (value.double() - expected).abs()
        assert (wrong <= bound + 4 * ROUNDINGS).all(), name
        off += float(wrong.square().sum())
        moved += float((expected - weights[name][step - 1]).square().sum())
    # It is much nearer to what was asked for than the last weights are.
    assert off < 0.05 * moved


def test_a_model_of_an_average_is_loaded_as_any(history: tuple[Path, dict[str, Tensor]], tmp_path: Path) -> None:
    folder, _ = history
    made = reconstruct(folder, 0.08, step=30)
    save_average(folder, tmp_path / "model", made)
    pipe = fd.Pipeline.from_pretrained(tmp_path / "model")
    for name, parameter in pipe.unet.named_parameters():
        assert torch.equal(parameter, made.tensors[name])
    assert (pipe.metadata["weights"], pipe.metadata["step"]) == ("ema", 30)
    assert pipe.metadata["training"]["average"] == "power:0.08"
    assert pipe.metadata["training"]["snapshot_every"] == EVERY
    with pytest.raises(ValueError, match="exists already"):
        save_average(folder, tmp_path / "model", made)


def test_widths_that_cannot_be_made_say_how_far_off_they_are(history: tuple[Path, dict[str, Tensor]]) -> None:
    folder, _ = history
    expected = (
        r"a width of 0\.01 at step 36 cannot be made of 12 snapshots of widths 0\.05 and 0\.1: its profile would be "
        r"off by 4\d%, and 10% are allowed; widths from about 0\.0[23]\d to 0\.2[0-4]\d can be made"
    )
    with pytest.raises(ValueError, match=expected):
        reconstruct(folder, 0.01)
    assert 0.4 < reconstruct(folder, 0.01, max_error=1.0).error < 0.5
    with pytest.raises(ValueError, match="there is no snapshot near enough: give a step of one, such as 36"):
        reconstruct(folder, 0.05, step=1)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"width": 0}, r"width must be a number in \(0, 0\.2887\)"),
        ({"width": 0.3}, r"width must be a number in \(0, 0\.2887\), .*, got 0\.3"),
        ({"width": 0.1, "step": 37}, "step must be from 1 to 36, the steps that the snapshots in .* are of, got 37"),
        ({"width": 0.1, "step": 0}, "step must be an int, at least 1"),
        ({"width": 0.1, "max_error": 0}, "max_error must be a positive number"),
    ],
)
def test_wrong_arguments_are_refused(
    history: tuple[Path, dict[str, Tensor]], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        reconstruct(history[0], **options)


def test_runs_without_snapshots_or_with_those_of_others_are_refused(
    history: tuple[Path, dict[str, Tensor]], tmp_path: Path
) -> None:
    folder, _ = history
    with pytest.raises(ValueError, match="is not the folder of a training run"):
        reconstruct(tmp_path / "missing", 0.1)
    trainer(tmp_path / "plain").run(until=1)
    with pytest.raises(ValueError, match=r"has no snapshots of averages, .* with snapshot_every=1000"):
        reconstruct(tmp_path / "plain", 0.1)
    other = trainer(tmp_path / "other", steps=4, snapshot_every=2, learning_rate=0.02)
    other.run()
    shutil.copy(list_snapshots(folder)[-1][1], tmp_path / "other" / "snapshots")
    with pytest.raises(ValueError, match=r"step_00000036\.safetensors is of another run than .*: move the files"):
        reconstruct(tmp_path / "other", 0.1)


def test_a_run_whose_settings_changed_is_still_itself(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 8, "snapshot_every": 2}
    trainer(tmp_path, **settings).run(until=4)
    trainer(tmp_path, learning_rate=1e-3, override=True, **settings).run()
    assert reconstruct(tmp_path, 0.1).num_snapshots == 1
    assert reconstruct(tmp_path, 0.08, max_error=0.2).num_snapshots == 4


def test_averages_that_began_anew_are_not_mixed_with_those_before(tmp_path: Path) -> None:
    trainer(tmp_path, steps=12, snapshot_every=1).run(until=4)
    trainer(tmp_path, steps=12, override=True).run(until=6)
    trainer(tmp_path, steps=12, snapshot_every=1, override=True).run()
    assert [step for step, _ in list_snapshots(tmp_path)] == [1, 2, 3, 4, 7, 8, 9, 10, 11, 12]
    assert reconstruct(tmp_path, 0.08, max_error=0.3).num_snapshots == 6
    with pytest.raises(ValueError, match="step must be from 7 to 12"):
        reconstruct(tmp_path, 0.1, step=4)
