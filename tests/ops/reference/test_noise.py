"""The noise contract in torch: its words and normals are NumPy's."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff.ops.reference.noise import torch_normals, torch_words
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.tolerances import FLOAT32_ROUNDING


@settings(max_examples=30, deadline=None)
@given(
    st.integers(0, 2**64 - 1),
    st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=3),
    st.integers(1, 70),
    st.sampled_from(list(Stream)),
    st.integers(0, 2**28 - 1),
)
def test_noise_torch_words_equal_numpy(seed, ids, count, stream, row):
    ours = torch_words(seed, torch.tensor(ids), count, stream, torch.tensor([row]))
    np.testing.assert_array_equal(ours.numpy()[:, :count], noise.words(seed, ids, count, stream, row))


def test_noise_torch_normals_equal_numpy():
    ours = torch_normals(11, torch.tensor([0, 2**40]), (3, 5, 7), 1, torch.tensor([4, 5]))
    theirs = noise.normals(11, [0, 2**40], 105, 1, [4, 5]).reshape(2, 3, 5, 7)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=2 * FLOAT32_ROUNDING)
