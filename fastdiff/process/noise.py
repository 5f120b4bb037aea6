"""Noise as a function: the counter-based generator that every device and every implementation follows.

The contract, written once:

* Generator: Philox4x32-10 (Salmon et al. 2011). Key = (seed mod 2^32, seed div 2^32).
* Counter = (e div 4, sample id mod 2^32, sample id div 2^32, stream * 2^28 + row), for element e of a sample in logical
  C, H, W order, whatever the memory format. One call gives the four 32-bit words r0..r3 of elements 4k..4k+3.
* A word as a uniform number: u(r) = float32(r) * 2^-32 + 2^-33, where float32(r) is the nearest float32 (ties to even)
  of the unsigned word and the sum is rounded once. u lies in [2^-33, 1].
* A word as an angle in turns: a(r) = float32(int32(r)) * 2^-32, in [-1/2, 1/2], exact after the one rounding.
* Normals, by Box and Muller: (z0, z1) = sqrt(-2 log u(r0)) (cos 2 pi a(r1), sin 2 pi a(r1)), and (z2, z3) likewise from
  r2 and r3. The words are equal bit for bit everywhere; the normals are this formula to within a few float32 ulp.
* A whole number in [0, n): (r0 * n) div 2^32.

Streams keep uses apart; a row counts sampling steps, training steps or timesteps, in [0, 2^28).
"""

from __future__ import annotations

import math
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import whole_number

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
NUM_ROUNDS = 10
MASK = 0xFFFFFFFF
STREAM_SHIFT = 28
MAX_ROW = 1 << STREAM_SHIFT

Words = npt.NDArray[np.uint32]


class Stream(IntEnum):
    """What noise is used for; at most 16 streams."""

    SAMPLING = 0
    INITIAL = 1
    TRAIN_NOISE = 2
    TRAIN_TIME = 3
    DROPOUT = 4
    LIKELIHOOD = 5
    LIKELIHOOD_TIME = 6
    LIKELIHOOD_PATH = 7
    PROBE = 8
    DEQUANTIZE = 9
    KNOWN = 10
    LANGEVIN = 11
    BROWNIAN = 12
    LABEL_DROPOUT = 13
    CROP = 14
    AUGMENT = 15


def last_kept(p: float) -> int:
    """The largest word that dropout with probability p keeps; -1 for none."""
    return math.ceil((1 - p) * 2**32) - 1


def factor_of_kept(p: float) -> float:
    """1 / (1 - p), finite where nothing is kept."""
    return 1 / max(1 - p, 2**-32)


def check_seed(seed: int) -> int:
    """Return the seed; raise ValueError unless it is a whole number in [0, 2^64)."""
    # Nearly all are; how the argument is spelt is found out for a message alone.
    if type(seed) is int and 0 <= seed < 1 << 64:
        return seed
    return whole_number(spelt("seed"), seed, low=0, high=(1 << 64) - 1)


def philox4x32(counter: npt.ArrayLike, key: npt.ArrayLike) -> Words:
    """Philox4x32-10 in NumPy.

    Args:
        counter: uint32 [..., 4].
        key: uint32 [..., 2], broadcast against the counter.

    Returns:
        uint32 [..., 4].

    Source: Salmon, Moraes, Dror, Shaw (2011), "Parallel random numbers: as easy as 1, 2, 3", SC11.
    """
    words = np.asarray(counter, dtype=np.uint64)
    keys = np.asarray(key, dtype=np.uint64)
    c0, c1, c2, c3 = (words[..., i] for i in range(4))
    k0, k1 = keys[..., 0], keys[..., 1]
    mask, shift = np.uint64(MASK), np.uint64(32)
    for _ in range(NUM_ROUNDS):
        p0, p1 = c0 * np.uint64(M0), c2 * np.uint64(M1)
        c0, c1, c2, c3 = (p1 >> shift) ^ c1 ^ k0, p1 & mask, (p0 >> shift) ^ c3 ^ k1, p0 & mask
        k0, k1 = (k0 + np.uint64(W0)) & mask, (k1 + np.uint64(W1)) & mask
    return np.stack(np.broadcast_arrays(c0, c1, c2, c3), axis=-1).astype(np.uint32)


def words(seed: int, sample_ids: npt.ArrayLike, num_elements: int, stream: int, row: npt.ArrayLike) -> Words:
    """The generator's words for whole samples: uint32 [B, num_elements], in logical element order.

    Args:
        seed: In [0, 2^64).
        sample_ids: [B] whole numbers in [0, 2^63).
        num_elements: Elements of one sample, C * H * W.
        stream: See `Stream`.
        row: In [0, 2^28), one or [B].
    """
    seed = check_seed(seed)
    ids = np.asarray(sample_ids, dtype=np.uint64).reshape(-1, 1)
    rows = np.broadcast_to(np.asarray(row, dtype=np.uint64).reshape(-1, 1), ids.shape)
    blocks = np.arange((num_elements + 3) // 4, dtype=np.uint64)[None, :]
    last = np.uint64(stream << STREAM_SHIFT) | rows
    parts = np.broadcast_arrays(blocks, ids & np.uint64(MASK), ids >> np.uint64(32), last)
    bits = philox4x32(np.stack(parts, axis=-1), [seed & MASK, seed >> 32])
    return bits.reshape(ids.size, -1)[:, :num_elements]


def normals(
    seed: int, sample_ids: npt.ArrayLike, num_elements: int, stream: int, row: npt.ArrayLike
) -> npt.NDArray[np.float32]:
    """Standard normals for whole samples, float32 [B, num_elements]: the contract's formula, evaluated in float64."""
    bits = words(seed, sample_ids, 4 * ((num_elements + 3) // 4), stream, row)
    pairs = bits.reshape(bits.shape[0], -1, 2)
    u = pairs[..., 0].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    turns = pairs[..., 1].view(np.int32).astype(np.float32) * np.float32(2.0**-32)
    radius = np.sqrt(-2.0 * np.log(u.astype(np.float64)))
    angle = 2.0 * np.pi * turns.astype(np.float64)
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)
    return z.reshape(bits.shape)[:, :num_elements].astype(np.float32)


def integers(
    seed: int, sample_ids: npt.ArrayLike, bound: int, stream: int, row: npt.ArrayLike
) -> npt.NDArray[np.int64]:
    """Whole numbers in [0, bound), one per sample: int64 [B]."""
    bound = whole_number("bound", bound, low=1, high=1 << 32)
    bits = words(seed, sample_ids, 1, stream, row)[:, 0].astype(np.uint64)
    return ((bits * np.uint64(bound)) >> np.uint64(32)).astype(np.int64)
