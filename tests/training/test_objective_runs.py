"""Trainings for each objective: a resumed one ends in the same bytes, the history of its losses included."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fastdiff.files.checkpoint import CONFIG_FILE, TRAINING_FILE, latest_checkpoint, load_tensors
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.training.config import NEWER
from fastdiff.training.trainer import Trainer
from support.processes import together
from support.tolerances import FLOAT32_DEEP, FLOAT32_ROUNDING, FLOAT32_RUN, FLOAT32_SUM
from support.training_runs import CONFIG, digests, images, metrics, network

# Few timesteps, so that each soon has its ten losses.
T = 3
SCHEDULE = NoiseSchedule.cosine(T)
STEPS = 14


def run_of(folder: Path, diffusion: Diffusion | None = None, **settings: Any) -> Trainer:
    diffusion = diffusion or Diffusion(SCHEDULE)
    channels = 3 if settings.get("condition") == "inpaint" else 1
    unet = network(in_channels=channels, out_channels=diffusion.model_channels(1))
    options = {"steps": STEPS, "checkpoint_every": 100, "warmup_steps": 0}
    return Trainer(unet, diffusion, images(), dataclasses.replace(CONFIG, **(options | settings)), folder)


def files_of(folder: Path) -> dict[str, str]:
    checkpoint = latest_checkpoint(folder)
    assert checkpoint is not None
    return digests(checkpoint)


def test_loss_aware_run_resumes_to_the_bit(tmp_path: Path) -> None:
    """Stopped before each timestep has its history, and after."""
    settings = {"loss": "vlb"}
    whole = run_of(tmp_path / "whole", **settings)
    full = []
    whole.run(on_step=lambda step: full.append(whole.objective._history.is_full))
    first = full.index(True)
    assert 3 < first < STEPS - 2
    for stop in (3, first + 2):
        folder = tmp_path / str(stop)
        run_of(folder, **settings).run(until=stop)
        rest = run_of(folder, **settings)
        assert rest.objective._history.is_full == (stop > first)
        rest.run()
        assert files_of(folder) == files_of(tmp_path / "whole")


def test_history_of_a_run_is_that_of_its_losses(tmp_path: Path) -> None:
    """All of a step's, without their factors and in the order of places, whatever the micro-batches."""
    first: list[list[int]] = []
    for size in (None, 2):
        run = run_of(tmp_path / str(size), loss="vlb", micro_batch=size)
        objective, observe = run.objective, run.objective.observe
        kept: list[list[float]] = [[] for _ in range(T)]
        means: list[float] = []

        def watch(
            t: torch.Tensor, losses: torch.Tensor, objective: Any = objective, observe: Any = observe,
            kept: Any = kept, means: Any = means,
        ) -> None:  # fmt: skip
            drawn, factors = objective.timesteps(CONFIG.seed, len(means), np.arange(CONFIG.batch_size))
            assert t.tolist() == drawn.tolist()
            first.extend([t.tolist()] if not means else [])
            means.append(float(np.mean(losses.numpy() * (1 if factors is None else factors))))
            for at, loss in zip(t.tolist(), losses.tolist(), strict=True):
                kept[at] = [*kept[at], loss][-10:]
            observe(t, losses)

        objective.observe = watch  # type: ignore[method-assign]
        run.run()
        np.testing.assert_array_equal(objective.state_dict()["losses"].numpy(), kept)
        logged = [entry["loss"] for entry in metrics(tmp_path / str(size))]
        np.testing.assert_allclose(logged, means, rtol=FLOAT32_SUM)
    assert first[0] == first[1]


def shared_history(rank: int, folder: Path, stop: int | None) -> tuple[list[list[int]], list[list[float]], list[int]]:
    """Timesteps and losses that a process is told at each step, and the steps after which each had its ten losses."""
    run = run_of(folder, loss="vlb", condition="inpaint", batch_size=6)
    timesteps: list[list[int]] = []
    losses: list[list[float]] = []
    full: list[int] = []
    observe = run.objective.observe

    def watch(t: torch.Tensor, values: torch.Tensor) -> None:
        timesteps.append(t.tolist())
        losses.append(values.tolist())
        observe(t, values)

    def on_step(step: int) -> None:
        full.extend([step] if run.objective._history.is_full else [])

    run.objective.observe = watch  # type: ignore[method-assign]
    run.run(until=stop, on_step=on_step)
    return timesteps, losses, full


def test_processes_keep_one_history_and_resume_to_the_bit(tmp_path: Path) -> None:
    alone = shared_history(0, tmp_path / "alone", None)
    assert 1 < alone[2][0] < STEPS - 2
    first, second = together(2, shared_history, tmp_path / "whole", None)
    assert first.error is second.error is None
    assert first.value == second.value
    # The same draws as alone, in the order of places; the losses are those of other sums.
    assert first.value[0] == alone[0]
    np.testing.assert_allclose(first.value[1], alone[1], rtol=FLOAT32_RUN)
    for stop in (alone[2][0] + 1, None):
        assert [part.error for part in together(2, shared_history, tmp_path / "parts", stop)] == [None, None]
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")


def test_gradient_is_that_of_the_losses_with_their_factors(tmp_path: Path) -> None:
    run = run_of(tmp_path, timestep_density=[1.0, 2.0, 3.0], importance=True)
    run.unet.eval()
    t, losses, factors = run._losses(0, np.arange(CONFIG.batch_size))
    assert factors is not None
    np.testing.assert_allclose(factors.numpy(), (2 / (1 + t)).numpy(), rtol=FLOAT32_ROUNDING)
    parameters = [parameter for parameter in run.unet.parameters() if parameter.requires_grad]
    expected = torch.autograd.grad((losses * factors).mean(), parameters, allow_unused=True)
    mean = run._gradients(0)
    assert float(mean) == pytest.approx(float((losses * factors).mean().detach()), rel=FLOAT32_SUM)
    for parameter, wanted in zip(parameters, expected, strict=True):
        if wanted is not None and parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)
    assert any(wanted is not None and bool(wanted.any()) for wanted in expected)


OBJECTIVES: dict[str, dict[str, Any]] = {
    "own weights and loss-aware": {"weighting": [1.0, 2.0, 0.0], "timestep_density": "loss_aware"},
    "huber": {"loss": "huber", "weighting": "min_snr"},
    "log_normal": {"timestep_density": "log_normal"},
    "own density": {"timestep_density": [1.0, 2.0, 3.0], "importance": True},
    "vlb of a learned variance": {"loss": "vlb", "variance": "learned_range"},
    "weighted hybrid": {"loss": "hybrid", "weighting": "min_snr", "variance": "learned_range"},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_runs_resume_to_the_bit(tmp_path: Path, name: str) -> None:
    settings = {"steps": 6} | OBJECTIVES[name]
    diffusion = Diffusion(SCHEDULE, variance=settings.pop("variance", "fixed_small"))
    run_of(tmp_path / "whole", diffusion, **settings).run()
    run_of(tmp_path / "parts", diffusion, **settings).run(until=4)
    run_of(tmp_path / "parts", diffusion, **settings).run()
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    with pytest.raises(ValueError, match="is of another run"):
        run_of(tmp_path / "parts", diffusion, loss="hybrid" if diffusion.learned_variance else "simple")


def test_checkpoints_of_before_go_on(tmp_path: Path) -> None:
    run_of(tmp_path).run(until=3)
    checkpoint = latest_checkpoint(tmp_path)
    assert checkpoint is not None
    path = checkpoint / CONFIG_FILE
    config = json.loads(path.read_text())
    config["training"] = {name: value for name, value in config["training"].items() if name not in NEWER}
    path.write_text(json.dumps(config))
    assert run_of(tmp_path).run(until=4).step == 4
    state = {"objective.losses": torch.zeros(T, 10, dtype=torch.float64)}
    with pytest.raises(ValueError, match="objective"):
        load_tensors(checkpoint / TRAINING_FILE, state)
