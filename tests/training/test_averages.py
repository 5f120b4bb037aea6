"""Tests of fastdiff.training.averages. Independent oracles: ema-pytorch, sums over a history, runs of one average."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastdiff.files.checkpoint import latest_checkpoint, load_model
from fastdiff.files.snapshots import list_snapshots, read_snapshot
from fastdiff.training.averages import Averages, PowerAverage
from fastdiff.training.config import TrainConfig
from fastdiff.training.profiles import combine
from fastdiff.training.trainer import Trainer
from support.processes import together
from support.training_runs import CONFIG, digests, trainer

# Float32 averages of values near 1, over some ten steps that round.
FEW_ROUNDINGS = 20 * 2**-24


def walk(module: nn.Module, generator: torch.Generator) -> None:
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)


def test_a_power_average_is_that_of_ema_pytorch() -> None:
    """Theirs takes the weights of its first update in twice, as those of the steps 1 and 2."""
    from ema_pytorch.post_hoc_ema import KarrasEMA

    module, generator = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    ours, theirs = PowerAverage(module, 0.1), KarrasEMA(module, sigma_rel=0.1, update_every=1)
    ours.update(0)
    for step in range(40):
        ours.update(step + 1)
        theirs.update()
        for name, value in theirs.ema_model.named_parameters():
            torch.testing.assert_close(ours.state_dict()[name], value, rtol=0, atol=FEW_ROUNDINGS)
        walk(module, generator)


def test_what_is_made_of_snapshots_is_what_ema_pytorch_makes(tmp_path: Path) -> None:
    from ema_pytorch import PostHocEMA

    module, generator = nn.Linear(3, 2), torch.Generator().manual_seed(0)
    theirs = PostHocEMA(
        module,
        sigma_rels=(0.05, 0.1),
        update_every=1,
        checkpoint_every_num_steps=10,
        checkpoint_folder=str(tmp_path / "post"),
        checkpoint_dtype=torch.float32,
    )
    kept: list[tuple[int, float, dict[str, Tensor]]] = []
    for step in range(1, 61):
        walk(module, generator)
        theirs.update()
        if step % 10 == 0:
            for width, average in zip((0.05, 0.1), theirs.ema_models, strict=True):
                values = {name: p.detach().double().clone() for name, p in average.ema_model.named_parameters()}
                kept.append((step, width, values))
    made = combine([step for step, _, _ in kept], [width for _, width, _ in kept], 60, 0.08)
    synthesized = theirs.synthesize_ema_model(sigma_rel=0.08)
    for name, value in synthesized.ema_model.named_parameters():
        ours = sum(weight * values[name] for weight, (_, _, values) in zip(made.weights, kept, strict=True))
        # Their weights do not quite sum to 1: with twelve averages, to a few thousandths.
        torch.testing.assert_close(ours, value.double(), rtol=0, atol=0.01 * float(value.detach().abs().max()))


def test_each_of_several_averages_is_that_of_a_run_of_its_own(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 12, "checkpoint_every": 100}
    several = trainer(tmp_path / "all", ema_decay=[0.2, 0.5, 0.0], snapshot_every=6, **settings).run()
    kept = digests(several.checkpoint)
    assert set(kept) == {"config.json", "model.safetensors", "training.safetensors", "averages.safetensors"}
    for decay in (0.2, 0.5, 0.0):
        alone = trainer(tmp_path / str(decay), ema_decay=decay, **settings).run()
        # Nothing else of a training depends on its averages.
        assert digests(alone.checkpoint)["training.safetensors"] == kept["training.safetensors"]
        found = load_model(tmp_path / "all", weights=f"ema:{decay}")
        for ours, expected in zip(found.unet.parameters(), load_model(alone.checkpoint).unet.parameters(), strict=True):
            assert torch.equal(ours, expected)
    first = load_model(tmp_path / "all")
    assert first.metadata["weights"] == "ema"
    for ours, expected in zip(
        first.unet.parameters(), load_model(tmp_path / "all", weights="ema:0.2").unet.parameters(), strict=True
    ):
        assert torch.equal(ours, expected)


def weights_of(run: Trainer) -> dict[str, Tensor]:
    return {name: parameter.detach().double().clone() for name, parameter in run.unet.named_parameters()}


def snapshots(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for _, path in list_snapshots(folder)}


def test_a_resumed_run_has_the_bytes_of_a_whole_one_and_snapshots_once(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"steps": 9, "ema_decay": [0.9, 0.5], "snapshot_every": 2, "checkpoint_every": 3}
    whole = trainer(tmp_path / "whole", **settings).run()
    expected = snapshots(tmp_path / "whole")
    assert list(expected) == [f"step_{step:08d}.safetensors" for step in (2, 4, 6, 8, 9)]
    # A process that dies after the snapshot of step 8 goes on from the checkpoint of step 6.
    run = trainer(tmp_path / "parts", **settings)

    def die(step: int) -> None:
        if step == 9:
            raise SystemExit

    with pytest.raises(SystemExit):
        run.run(on_step=die)
    assert [step for step, _ in list_snapshots(tmp_path / "parts")] == [2, 4, 6, 8]
    again = trainer(tmp_path / "parts", **settings)
    assert again.step == 6
    again.run(until=7)
    assert [step for step, _ in list_snapshots(tmp_path / "parts")] == [2, 4, 6]
    result = trainer(tmp_path / "parts", **settings).run()
    assert snapshots(tmp_path / "parts") == expected
    assert digests(result.checkpoint) == digests(whole.checkpoint)


def test_decays_that_are_added_go_on_from_the_nearest_and_dropped_ones_are_gone(tmp_path: Path) -> None:
    trainer(tmp_path, ema_decay=[0.5, 0.1]).run(until=2)
    with pytest.raises(ValueError, match=r"give override=True, .* before: ema_decay: \[0\.5, 0\.1\] in the checkpoint"):
        trainer(tmp_path, ema_decay=[0.6, 0.5, 0.01])
    kept = latest_checkpoint(tmp_path)
    assert kept is not None
    before = {"0.5": load_file(kept / "model.safetensors")}
    before["0.1"] = {
        name.removeprefix("ema:0.1/"): value for name, value in load_file(kept / "averages.safetensors").items()
    }
    run = trainer(tmp_path, ema_decay=[0.6, 0.5, 0.01], override=True)
    others = {name: value.clone() for name, value in run.averages.others().items()}
    for name, value in run.ema.state_dict().items():
        assert torch.equal(value, before["0.5"][name]), name
        assert torch.equal(others["ema:0.5/" + name], before["0.5"][name]), name
        assert torch.equal(others["ema:0.01/" + name], before["0.1"][name]), name
    run.run(until=4)
    with pytest.raises(ValueError, match=r"has no average ema:0\.1, .* it has ema:0\.6, ema:0\.01, ema:0\.5, raw"):
        load_model(tmp_path, weights="ema:0.1")
    assert load_model(tmp_path).metadata["training"]["changes"] == [
        {"step": 2, "ema_decay": [[0.5, 0.1], [0.6, 0.5, 0.01]]}
    ]


def test_snapshots_that_begin_later_take_the_weights_of_then_for_all_before(tmp_path: Path) -> None:
    trainer(tmp_path, steps=8).run(until=4)
    with pytest.raises(ValueError, match=r"snapshot_every: None in the checkpoint, 2 now"):
        trainer(tmp_path, steps=8, snapshot_every=2)
    run = trainer(tmp_path, steps=8, snapshot_every=2, override=True)
    history = [weights_of(run)] * 4
    run.run(on_step=lambda step: history.append(weights_of(run)))
    newest = read_snapshot(list_snapshots(tmp_path)[-1][1])
    assert (newest.step, newest.since, newest.widths) == (8, 4, (0.05, 0.1))
    gamma = PowerAverage(run.unet, 0.1).gamma
    shares = [((step + 1) / 8) ** (gamma + 1) - (step / 8) ** (gamma + 1) for step in range(8)]
    for name, value in newest.tensors().items():
        if name.startswith("power:0.1/"):
            plain = name.removeprefix("power:0.1/")
            expected = sum(share * then[plain] for share, then in zip(shares, history, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=0, atol=FEW_ROUNDINGS)
    # Once they are there, how often they come may change, and it is still the same beginning.
    again = trainer(tmp_path, steps=12, snapshot_every=3)
    again.run()
    assert [(s.step, s.since) for s in (read_snapshot(path) for _, path in list_snapshots(tmp_path))] == [
        (6, 4), (8, 4), (9, 4), (12, 4),
    ]  # fmt: skip


def train_two(rank: int, folder: Path, until: int | None, settings: dict[str, Any]) -> None:
    trainer(folder, batch_size=6, steps=6, **settings).run(until=until)


def test_two_processes_keep_and_store_them_once_and_to_the_bit(tmp_path: Path) -> None:
    """Recomputed activations, and a stop between the snapshots, change no byte."""
    settings: dict[str, Any] = {"ema_decay": [0.9, 0.5], "snapshot_every": 2, "checkpoint_every": 3}
    recomputed = {"activation_checkpointing": True}
    for folder, more, until in (("whole", {}, None), ("parts", recomputed, 3), ("parts", {}, None)):
        outcomes = together(2, train_two, tmp_path / folder, until, settings | more)
        assert [outcome.error for outcome in outcomes] == [None, None]
    assert list(snapshots(tmp_path / "whole")) == [f"step_{step:08d}.safetensors" for step in (2, 4, 6)]
    assert snapshots(tmp_path / "parts") == snapshots(tmp_path / "whole")
    whole, parts = (latest_checkpoint(tmp_path / folder) for folder in ("whole", "parts"))
    assert whole is not None
    assert parts is not None
    assert digests(parts) == digests(whole)


def test_averages_of_a_configuration() -> None:
    module = nn.Linear(2, 2)
    plain = Averages(module, TrainConfig(steps=10))
    assert plain.others() == {}
    assert not any(plain.is_stored_at(step) for step in range(1, 11))
    config = dataclasses.replace(CONFIG, steps=10, ema_decay=(0.9, 0.99), snapshot_every=4, power_widths=(0.2, 0.1))
    several = Averages(module, config)
    assert [step for step in range(1, 13) if several.is_stored_at(step)] == [4, 8, 10, 12]
    assert list(several.others()) == [
        f"{kind}/{name}" for kind in ("ema:0.99", "power:0.2", "power:0.1") for name in ("weight", "bias")
    ]
