"""TrainConfig: it survives JSON, and refuses what it does not know."""

from __future__ import annotations

import json
import math

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


def test_one_decay_is_a_number_however_it_is_given() -> None:
    assert TrainConfig(steps=1, ema_decay=[0.9]) == TrainConfig(steps=1, ema_decay=0.9)  # type: ignore[arg-type]
    assert TrainConfig(steps=1, ema_decay=0.9).decays == (0.9,)
    assert TrainConfig(steps=1, ema_decay=(0.9, 0.5)).to_dict()["ema_decay"] == [0.9, 0.5]


def test_a_start_in_the_warm_up_is_refused() -> None:
    with pytest.raises(ValueError, match="must not lie in the warm-up, which takes 5,000 steps, got 10"):
        TrainConfig(steps=1, learning_rate_decay_start=10)
    assert TrainConfig(steps=1, learning_rate_decay_start=5000).learning_rate_decay_start == 5000
