"""Tests of fastdiff.training.divergence: what is advised after a NaN can be done, and nothing else by accident."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from fastdiff.files.checkpoint import load_model
from fastdiff.process.arguments import spelling
from fastdiff.training.config import TrainConfig
from fastdiff.training.divergence import check_finite, has_diverged, is_advised
from support.training_runs import CONFIG, trainer


def diverge(folder: Path, **settings: Any) -> str:
    """A run that is left at its checkpoint of step 2; what it says."""
    run = trainer(folder, **settings)

    def poison(step: int) -> None:
        if step == 3:
            with torch.no_grad():
                run.unet.conv_out.weight.fill_(math.inf)

    with pytest.raises(RuntimeError) as caught:
        run.run(on_step=poison)
    return str(caught.value)


def test_what_is_advised_needs_no_override(tmp_path: Path) -> None:
    said = diverge(tmp_path, clip_norm=None, precision="bfloat16")
    assert said.endswith(
        "is intact. Try a learning_rate below 0.01, warmup_steps above 4, precision 'float32', a clip_norm, and look "
        "at the data; the run goes on from there with such settings, and with others under override=True"
    )
    assert has_diverged(tmp_path)
    advised: dict[str, Any] = {"learning_rate": 1e-3, "warmup_steps": 5, "precision": "float32", "clip_norm": 1.0}
    run = trainer(tmp_path, **advised)
    assert run.step == 2
    assert set(run.changes) == set(advised)
    # It may be tried again and again, until something has come of it.
    again = trainer(tmp_path, **{**advised, "learning_rate": 1e-4})
    again.run(until=3)
    assert load_model(tmp_path).metadata["training"]["changes"] == [
        {
            "step": 2,
            "learning_rate": [1e-2, 1e-4],
            "warmup_steps": [4, 5],
            "clip_norm": [None, 1.0],
            "precision": ["bfloat16", "float32"],
        }
    ]
    assert not has_diverged(tmp_path)
    with pytest.raises(ValueError, match=r"learning_rate: 0\.0001 in the checkpoint, 1e-05 now$"):
        trainer(tmp_path, **{**advised, "learning_rate": 1e-5})


def test_after_a_divergence_the_rest_needs_its_override(tmp_path: Path) -> None:
    diverge(tmp_path)
    with pytest.raises(ValueError, match=r"other settings; .* give override=True, .*: learning_rate: 0\.01 in the ch"):
        trainer(tmp_path, learning_rate=0.02)
    with pytest.raises(ValueError, match=r"before: weight_decay: 0\.0 in the checkpoint, 0\.1 now$"):
        trainer(tmp_path, learning_rate=0.001, weight_decay=0.1)
    with pytest.raises(ValueError, match="is of another run"):
        trainer(tmp_path, learning_rate=0.001, betas=(0.5, 0.9))
    assert trainer(tmp_path, learning_rate=0.02, weight_decay=0.1, override=True).step == 2


def test_without_a_divergence_nothing_changes_in_silence(tmp_path: Path) -> None:
    trainer(tmp_path).run(until=2)
    for settings in ({"learning_rate": 1e-3}, {"clip_norm": 0.5}, {"precision": "bfloat16"}, {"ema_decay": 0.5}):
        with pytest.raises(ValueError, match="was written with other settings"):
            trainer(tmp_path, **settings)
        assert trainer(tmp_path, override=True, **settings).step == 2
    # The length is one of the settings of a learning rate that ends with it.
    trainer(tmp_path / "cosine", learning_rate_schedule="cosine").run(until=2)
    with pytest.raises(ValueError, match=r"steps: 6 in the checkpoint, 60 now"):
        trainer(tmp_path / "cosine", learning_rate_schedule="cosine", steps=60)
    longer = trainer(tmp_path / "cosine", learning_rate_schedule="cosine", steps=60, override=True)
    assert longer.changes == {"steps": (6, 60)}
    assert trainer(tmp_path, steps=60).changes == {}


def test_at_the_command_line_the_flag_is_named(tmp_path: Path) -> None:
    with spelling({"override": "--override", "learning_rate": "--lr"}, ()):
        said = diverge(tmp_path)
        assert "Try a --lr below 0.01" in said
        assert said.endswith("and with others under --override")
        with pytest.raises(ValueError, match="which the checkpoints will record, give --override, else"):
            trainer(tmp_path, learning_rate=1.0)


def test_before_the_first_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="there is no checkpoint yet") as caught:
        check_finite(tmp_path, CONFIG, 1, math.nan, 1.0)
    assert "override" not in str(caught.value)
    assert not has_diverged(tmp_path)
    with pytest.raises(RuntimeError, match="the norm of the gradient is inf at step 7"):
        check_finite(tmp_path, TrainConfig(steps=10), 7, 1.0, math.inf)
    check_finite(tmp_path, CONFIG, 1, 1.0, 1.0)


@pytest.mark.parametrize(
    ("name", "before", "now", "expected"),
    [
        ("learning_rate", 0.1, 0.01, True),
        ("learning_rate", 0.1, 0.2, False),
        ("warmup_steps", 10, 20, True),
        ("warmup_steps", 10, 5, False),
        ("precision", "bfloat16", "float32", True),
        ("precision", "float32", "bfloat16", False),
        ("clip_norm", None, 1.0, True),
        ("clip_norm", 2.0, 1.0, True),
        ("clip_norm", 1.0, 2.0, False),
        ("clip_norm", 1.0, None, False),
        ("weight_decay", 0.1, 0.0, False),
    ],
)
def test_advice_has_a_direction(name: str, before: Any, now: Any, expected: bool) -> None:
    assert is_advised(name, before, now) == expected
