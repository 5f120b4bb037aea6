"""Which timesteps a respacing keeps, against OpenAI's rule."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.process.respacing import respaced_indices


def _openai_space_timesteps(num_timesteps, counts):
    """The rule of improved-diffusion, re-derived: fractional strides within equal sections."""
    size, extra = divmod(num_timesteps, len(counts))
    start, steps = 0, []
    for i, count in enumerate(counts):
        length = size + (i < extra)
        stride = 1 if count <= 1 else (length - 1) / (count - 1)
        at = 0.0
        for _ in range(count):
            steps.append(start + round(at))
            at += stride
        start += length
    return steps


@pytest.mark.parametrize("counts", [[250], [10, 15, 20], [1], [1000], [334, 333, 333], [7, 1, 3]], ids=str)
def test_schedule_respacing_matches_openai(counts):
    assert respaced_indices(1000, counts) == _openai_space_timesteps(1000, counts)
    assert respaced_indices(1000, ",".join(map(str, counts))) == _openai_space_timesteps(1000, counts)


@given(st.integers(1, 300), st.data())
def test_schedule_ddim_respacing_gives_any_count(num_timesteps, data):
    count = data.draw(st.integers(1, num_timesteps))
    chosen = respaced_indices(num_timesteps, f"ddim{count}")
    assert len(chosen) == count
    assert chosen[0] == 0
    assert len(set(np.diff(chosen))) <= 1
    assert chosen[-1] < num_timesteps
