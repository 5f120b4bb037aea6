"""Which timesteps are visited: increasing, as many as asked, or a list given."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fastdiff.samplers import SPACINGS, spaced_indices


@given(st.integers(1, 400), st.data())
def test_spacings_are_strictly_increasing(num_timesteps, data):
    steps = data.draw(st.integers(1, num_timesteps))
    for spacing in SPACINGS:
        chosen = spaced_indices(num_timesteps, steps, spacing)
        assert len(chosen) == steps
        assert (np.diff(chosen) > 0).all()
        assert chosen[0] >= 0
        assert chosen[-1] < num_timesteps
        if spacing in ("trailing", "linspace"):
            assert chosen[-1] == num_timesteps - 1


def test_spacings_take_explicit_lists_in_both_orders():
    assert spaced_indices(10, timesteps=[9, 4, 0]) == [0, 4, 9]
    assert spaced_indices(10, 3, timesteps=[0, 4, 9]) == [0, 4, 9]
