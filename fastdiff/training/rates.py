"""Learning rates by step: a warm-up, then constant or falling."""

from __future__ import annotations

import math

from fastdiff.training.config import RateSchedule, TrainConfig

__all__ = ["learning_rate", "rate_factor"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Of step number `step`, counted from 0; see `rate_factor`."""
    return config.learning_rate * rate_factor(
        config.learning_rate_schedule,
        step,
        steps=config.steps,
        warmup_steps=config.warmup_steps,
        decay_start=config.learning_rate_decay_start,
        final=config.final_learning_rate / config.learning_rate,
    )


def rate_factor(
    schedule: RateSchedule,
    step: int,
    *,
    steps: int,
    warmup_steps: int = 0,
    decay_start: int | None = None,
    final: float = 0.0,
) -> float:
    """The learning rate of a step as a share of the full one.

    With k = step + 1 and w = warmup_steps, the rate rises as k / w up to k = w, and is full up to k = decay_start = d.
    From there on, with p = (k - d) / (steps - d):

    * "constant": 1;
    * "cosine": final + (1 - final) (1 + cos(pi p)) / 2;
    * "linear": 1 - (1 - final) p;
    * "inverse_sqrt": max(final, sqrt(max(1, d) / k)).

    Args:
        schedule: As above.
        step: Counted from 0.
        steps: Of the training in all; the last of them, step = steps - 1, has the share `final` ("cosine", "linear").
        warmup_steps: w, at least 0.
        decay_start: d, at least w; w when None.
        final: Share in [0, 1] that is not gone below.

    Returns:
        In (0, 1] during the warm-up, in [final, 1] after it.

    Source: Loshchilov, Hutter (2017), arXiv:1608.03983, eq. 5, without restarts; the inverse square root: Karras et al.
    (2024), arXiv:2312.02696, appendix B, whose t_ref is d.
    """
    taken, start = step + 1, warmup_steps if decay_start is None else decay_start
    if taken <= start or schedule == "constant":
        return min(1.0, taken / max(1, warmup_steps))
    if schedule == "inverse_sqrt":
        return max(final, math.sqrt(max(1, start) / taken))
    # A run that goes on beyond its end stays at the end.
    progress = min(1.0, (taken - start) / max(1, steps - start))
    if schedule == "linear":
        return 1 - (1 - final) * progress
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2
