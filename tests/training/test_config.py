"""TrainConfig: it survives JSON, and refuses what it does not know."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from fastdiff.training.trainer import TrainConfig


def test_config_round_trip() -> None:
    config = TrainConfig(
        steps=7, betas=(0.8, 0.99), clip_norm=None, loss="hybrid", ema_decay=(0.9, 0.99), no_weight_decay=("norms",)
    )
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    assert TrainConfig.from_dict({"steps": 7}) == TrainConfig(steps=7)


def test_config_refuses_unknown_keys() -> None:
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat' .* did you mean 'learning_rate'"):
        TrainConfig.from_dict({"steps": 1, "learning_rat": 1})
    with pytest.raises(ValueError, match="needs the key 'steps'"):
        TrainConfig.from_dict({})


BAD_VALUES: dict[str, list[object]] = {
    "steps": [0, 1.5, True, "10", 2**28 + 1],
    "batch_size": [0],
    "learning_rate": [0, -1e-4, math.nan, "fast"],
    "weight_decay": [-1.0],
    "betas": [(0.9,), (0.9, 1.0), 0.9],
    "warmup_steps": [-1],
    "clip_norm": [0.0],
    "ema_decay": [1.0, [], [0.9, 1.0], [0.9, 0.9], "0.9", None],
    "precision": ["float16"],
    "flip": [1],
    "seed": [-1, 2**64],
    "checkpoint_every": [0],
    "keep": [0],
    "log_every": [0],
    "loss": ["mse"],
    "micro_batch": [0, 1.5],
    "weighting": ["min-snr", 3, [], [1.0, -1.0], [0.0, 0.0]],
    "timestep_density": ["normal", [math.nan]],
    "importance": [1, "yes"],
    "huber_delta": [0, "small"],
    "min_snr_gamma": [0.0, math.inf],
    "p2_gamma": [-1],
    "p2_k": [0],
    "log_normal_mean": [math.nan],
    "log_normal_std": [0],
    "learning_rate_schedule": ["exponential", None],
    "learning_rate_decay_start": [-1, 1.5, 4999],
    "final_learning_rate": [-1e-5, 3e-4, None],
    "snapshot_every": [0, 2.5],
    "power_widths": [[0.05], [0.05, 0.3], [0.1, 0.1], 0.1, ["0.05", 0.1]],
    "activation_checkpointing": [1, None],
    "compile": ["yes"],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD_VALUES.items() for value in values])
def test_config_refuses_bad_values(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=name):
        TrainConfig.from_dict({"steps": 10, name: value})


# Settings that do not go together, and what is said of them.
NOT_TOGETHER: dict[str, tuple[dict[str, object], str]] = {
    "an option without its weighting": (
        {"min_snr_gamma": 3.0},
        "min_snr_gamma is of weighting='min_snr', and weighting is",
    ),
    "one of another weighting": (
        {"weighting": "min_snr", "p2_k": 2.0},
        "p2_k is of weighting='p2', and weighting is 'min_s",
    ),
    "a delta without huber": ({"huber_delta": 1.0}, "huber_delta is of loss='huber', and loss is 'simple'"),
    "a mean without a normal": (
        {"log_normal_mean": 0.0},
        "timestep_density='log_normal', and timestep_density is None",
    ),
    "a weighted bound": (
        {"loss": "vlb", "weighting": "p2"},
        "loss 'vlb' has the weights of the bound: leave out weighti",
    ),
    "a bound of its density": (
        {"loss": "vlb", "importance": False},
        "loss 'vlb' needs the importance .* leave out import",
    ),
    "losses of their density": (
        {"timestep_density": "loss_aware", "importance": False},
        "'loss_aware' needs the importan",
    ),
}


@pytest.mark.parametrize("name", NOT_TOGETHER)
def test_config_refuses_what_does_not_go_together(name: str) -> None:
    settings, message = NOT_TOGETHER[name]
    with pytest.raises(ValueError, match=message):
        TrainConfig.from_dict({"steps": 1, **settings})


def test_config_without_weights_is_one_thing() -> None:
    """YAML reads none as no value."""
    assert TrainConfig(steps=1, weighting="none") == TrainConfig(steps=1)
    assert TrainConfig(steps=1).to_dict()["weighting"] is None


def test_config_keeps_numbers_of_a_file(tmp_path: Path) -> None:
    """A checkpoint holds the numbers themselves, so that the file may go."""
    path = tmp_path / "weights.npy"
    np.save(path, [1.0, 0.1, 2.0])
    config = TrainConfig(steps=7, weighting=path, timestep_density=[1, 2, 3])
    path.unlink()
    written = json.loads(json.dumps(config.to_dict()))
    assert written["weighting"] == [1.0, 0.1, 2.0]
    assert TrainConfig.from_dict(written) == config


def test_config_says_which_density_and_whether_it_is_put_back() -> None:
    cases: dict[tuple[str, str | None, bool | None], tuple[bool, bool]] = {
        ("simple", None, None): (False, False),
        ("vlb", None, None): (True, True),
        ("vlb", "uniform", None): (False, True),
        ("simple", "loss_aware", None): (True, True),
        ("simple", "log_normal", None): (False, False),
        ("simple", "log_normal", True): (False, True),
        ("vlb", "log_normal", None): (False, True),
    }
    for (loss, density, importance), expected in cases.items():
        config = TrainConfig.from_dict(
            {"steps": 1, "loss": loss, "timestep_density": density, "importance": importance}
        )
        assert (config.is_loss_aware, config.puts_back) == expected, (loss, density, importance)


def test_one_decay_is_a_number_however_it_is_given() -> None:
    assert TrainConfig(steps=1, ema_decay=[0.9]) == TrainConfig(steps=1, ema_decay=0.9)  # type: ignore[arg-type]
    assert TrainConfig(steps=1, ema_decay=0.9).decays == (0.9,)
    assert TrainConfig(steps=1, ema_decay=(0.9, 0.5)).to_dict()["ema_decay"] == [0.9, 0.5]


def test_a_start_in_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="must not lie in the warm-up, which takes 5,000 steps, got 10"):
        TrainConfig(steps=1, learning_rate_decay_start=10)
    assert TrainConfig(steps=1, learning_rate_decay_start=5000).learning_rate_decay_start == 5000
