"""Several processes that train together: the draws, the weights, the bytes after kills, and what goes wrong.

FASTDIFF_KILLS raises the number of random kills.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from fastdiff.files.checkpoint import latest_checkpoint
from fastdiff.training.trainer import Trainer
from support.processes import together
from support.training_runs import CONFIG, SIMPLE, digests, images, metrics, network

NUM_KILLS = int(os.environ.get("FASTDIFF_KILLS", "3"))

# Weights after four steps of AdamW, whose step is as long as the learning rate (1e-2) however small the gradient: one
# near 0 that is rounded otherwise moves its weight by a part of that. Seen: 2e-5 at the most.
WEIGHTS = 2e-4
SETTINGS = dataclasses.replace(CONFIG, batch_size=6, steps=4, checkpoint_every=2, label_dropout=0.3)
Draws = dict[tuple[int, int], str]


def make(folder: Path, wrapped: bool = False, **changes: Any) -> Trainer:
    unet: Any = network(num_classes=4)
    if wrapped:
        unet = DistributedDataParallel(unet)
    return Trainer(unet, SIMPLE, images(labels=True), dataclasses.replace(SETTINGS, **changes), folder)


def recorded(subject: Trainer, draws: Draws) -> None:
    """Note a digest of all that is drawn for each image of each step."""
    losses = subject._losses

    def noted(step: int, places: Any) -> Any:
        batch = subject.batches.at(step, places)
        t, _ = subject.objective.timesteps(subject.config.seed, step, places)
        seen: list[Tensor] = []
        hook = subject._network.register_forward_pre_hook(
            lambda module, inputs: seen.append(inputs[0].detach().clone())
        )
        found = losses(step, places)
        hook.remove()
        assert batch.labels is not None
        for i, place in enumerate(places.tolist()):
            values = (batch.images[i], batch.labels[i], torch.tensor(t[i]), seen[0][i])
            parts = [value.contiguous().numpy().tobytes() for value in values]
            draws[step, place] = hashlib.sha256(b"".join(parts)).hexdigest()
        return found

    subject._losses = noted  # type: ignore[method-assign]


def train_cases(rank: int, folder: Path, cases: list[dict[str, Any]]) -> list[Draws]:
    """Train with each of some settings, one after the other; what was drawn."""
    found = []
    for number, case in enumerate(cases):
        subject = make(folder / str(number), **case)
        draws: Draws = {}
        recorded(subject, draws)
        subject.run()
        found.append(draws)
    return found


def weights_of(folder: Path) -> dict[str, Tensor]:
    newest = latest_checkpoint(folder)
    assert newest is not None
    return load_file(newest / "training.safetensors")


def bytes_of(folder: Path) -> dict[str, str]:
    newest = latest_checkpoint(folder)
    assert newest is not None
    return digests(newest) | {"": newest.name}


CASES: list[dict[str, Any]] = [{}, {"micro_batch": 1}, {"micro_batch": 2}, {"wrapped": True}]


def test_any_number_of_processes_draws_the_same_and_trains_alike(tmp_path: Path) -> None:
    alone = train_cases(0, tmp_path / "1", CASES[:1])[0]
    assert set(alone) == {(step, place) for step in range(4) for place in range(6)}
    expected = weights_of(tmp_path / "1" / "0")
    for size in (2, 3):
        outcomes = together(size, train_cases, tmp_path / str(size), CASES)
        assert [outcome.error for outcome in outcomes] == [None] * size
        for number in range(len(CASES)):
            parts = [outcome.value[number] for outcome in outcomes]
            assert {key: value for part in parts for key, value in part.items()} == alone
            assert sum(map(len, parts)) == len(alone)
            found = weights_of(tmp_path / str(size) / str(number))
            assert set(found) == set(expected)
            for name, value in expected.items():
                if name.startswith("raw."):
                    torch.testing.assert_close(found[name], value, rtol=0, atol=WEIGHTS, msg=name)
            losses = [entry["loss"] for entry in metrics(tmp_path / str(size) / str(number))]
            assert losses == pytest.approx([entry["loss"] for entry in metrics(tmp_path / "1" / "0")], rel=1e-5)


def train_to(rank: int, folder: Path, kill: tuple[int, int, int] | None, steps: int) -> int:
    """Train to the end, unless a process is killed: its rank, the step, and the signal."""
    subject = make(folder, steps=steps, micro_batch=2, checkpoint_every=3)

    def on_step(step: int) -> None:
        if kill is not None and rank == kill[0] and step == kill[1]:
            os.kill(os.getpid(), kill[2])

    return subject.run(on_step=on_step).step


@pytest.mark.parametrize("size", [2, 3])
def test_killed_runs_end_with_the_bytes_of_one_that_was_not(tmp_path: Path, size: int) -> None:
    steps = 12
    outcomes = together(size, train_to, tmp_path / "whole", None, steps)
    assert [(outcome.value, outcome.error) for outcome in outcomes] == [(steps, None)] * size
    chance = random.Random(size)
    for number in range(NUM_KILLS):
        folder = tmp_path / f"killed-{number}"
        kill = (chance.randrange(size), chance.randint(1, steps - 1), chance.choice([signal.SIGKILL, signal.SIGTERM]))
        outcomes = together(size, train_to, folder, kill, steps)
        for rank, outcome in enumerate(outcomes):
            if kill[2] == signal.SIGTERM:
                # It arrives after the step's images have been looked at, so the next step is the last.
                last = min(kill[1] + 1, steps)
                assert outcome.error == (
                    f"Interrupted: training stopped at step {last} and was saved to {latest_checkpoint(folder)}"
                )
            elif rank == kill[0]:
                assert outcome.exit_code == -signal.SIGKILL
            else:
                assert outcome.error is not None
                assert f"rank {kill[0]} (" in outcome.error
                assert re.search(rf"was lost at step \d+ \(seen at step {kill[1] + 1} by rank {rank}\)", outcome.error)
        outcomes = together(size, train_to, folder, None, steps)
        assert [(outcome.value, outcome.error) for outcome in outcomes] == [(steps, None)] * size
        assert bytes_of(folder) == bytes_of(tmp_path / "whole"), kill
        shutil.rmtree(folder)
