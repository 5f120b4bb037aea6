"""The noise contract: Philox against its published vectors, the mapping to normals, and what must not matter."""

import numpy as np
import pytest

from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.tolerances import FLOAT32_ROUNDING

# Random123's kat_vectors for philox4x32 with 10 rounds: counter, key, result.
KNOWN_ANSWERS = [
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS, ids=["zeros", "ones", "pi"])
def test_noise_philox_known_answers(counter, key, result):
    assert noise.philox4x32(counter, key).tolist() == result


def test_noise_words_follow_the_counter_layout():
    seed, sample_id, row = (7 << 32) | 5, (3 << 32) | 2, 9
    words = noise.words(seed, [sample_id], 10, Stream.LIKELIHOOD, row)
    for e in range(10):
        block = noise.philox4x32([e // 4, 2, 3, (Stream.LIKELIHOOD << 28) | row], [5, 7])
        assert words[0, e] == block[e % 4]


def test_noise_normals_follow_the_formula():
    """One block by hand, with Python's floats."""
    import math

    r = [int(w) for w in noise.words(3, [17], 4, Stream.SAMPLING, 2)[0]]
    u = [float(np.float32(np.float32(r[i]) * 2.0**-32 + np.float32(2.0**-33))) for i in (0, 2)]
    a = [float(np.float32(np.int32(np.uint32(r[i])))) * 2.0**-32 for i in (1, 3)]
    expected = []
    for ui, ai in zip(u, a, strict=True):
        radius = math.sqrt(-2 * math.log(ui))
        expected += [radius * math.cos(2 * math.pi * ai), radius * math.sin(2 * math.pi * ai)]
    np.testing.assert_allclose(noise.normals(3, [17], 4, Stream.SAMPLING, 2)[0], expected, rtol=FLOAT32_ROUNDING)


def test_noise_has_normal_moments():
    z = noise.normals(0, np.arange(64), 16384, Stream.TRAIN_NOISE, 0).astype(np.float64).ravel()
    n = z.size
    assert abs(z.mean()) < 4 / np.sqrt(n)
    assert abs(z.var() - 1) < 4 * np.sqrt(2 / n)
    assert abs((z**3).mean()) < 4 * np.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 4 * np.sqrt(96 / n)
    assert abs(np.corrcoef(z[:-1], z[1:])[0, 1]) < 4 / np.sqrt(n)


def test_noise_differs_between_streams_rows_seeds_and_samples():
    draws = [
        noise.normals(seed, [sample], 8, stream, row).tobytes()
        for seed in (0, 1, 2**32)
        for sample in (0, 1, 2**32)
        for stream in Stream
        for row in (0, 1)
    ]
    assert len(set(draws)) == len(draws)


def test_noise_integers_are_uniform_and_in_range():
    values = noise.integers(5, np.arange(20000), 10, Stream.TRAIN_TIME, 3)
    assert values.min() == 0
    assert values.max() == 9
    counts = np.bincount(values, minlength=10)
    assert ((counts - 2000) ** 2 / 2000).sum() < 27.9  # chi-squared, 9 degrees of freedom, 0.1 %
    np.testing.assert_array_equal(noise.integers(5, [3], 1, 0, 0), [0])


@pytest.mark.parametrize("seed", [-1, 2**64, 1.5, True])
def test_noise_refuses_seeds(seed):
    with pytest.raises(ValueError, match="seed"):
        noise.check_seed(seed)


@pytest.mark.parametrize("bound", [0, -1, 2**32 + 1])
def test_noise_refuses_bounds(bound):
    with pytest.raises(ValueError, match="bound"):
        noise.integers(0, [0], bound, 0, 0)
