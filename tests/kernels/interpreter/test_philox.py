"""The noise contract in Triton: words bit for bit, normals in ulp."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl

from fastdiff.kernels import philox
from fastdiff.process import noise
from support.tolerances import NORMAL_ULP

COUNT = 4096


@triton.jit
def _words_kernel(counter_ptr, key_ptr, out_ptr, COUNT: tl.constexpr):
    n = tl.arange(0, COUNT)
    c0, c1 = tl.load(counter_ptr + 4 * n).to(tl.uint32), tl.load(counter_ptr + 4 * n + 1).to(tl.uint32)
    c2, c3 = tl.load(counter_ptr + 4 * n + 2).to(tl.uint32), tl.load(counter_ptr + 4 * n + 3).to(tl.uint32)
    k0, k1 = tl.load(key_ptr + 2 * n).to(tl.uint32), tl.load(key_ptr + 2 * n + 1).to(tl.uint32)
    r0, r1, r2, r3 = philox.philox4x32(c0, c1, c2, c3, k0, k1)
    tl.store(out_ptr + 4 * n, r0.to(tl.int64))
    tl.store(out_ptr + 4 * n + 1, r1.to(tl.int64))
    tl.store(out_ptr + 4 * n + 2, r2.to(tl.int64))
    tl.store(out_ptr + 4 * n + 3, r3.to(tl.int64))


@triton.jit
def _box_muller_kernel(words_ptr, out_ptr, COUNT: tl.constexpr):
    n = tl.arange(0, COUNT)
    r0, r1 = tl.load(words_ptr + 2 * n).to(tl.uint32), tl.load(words_ptr + 2 * n + 1).to(tl.uint32)
    z0, z1 = philox.box_muller(r0, r1)
    tl.store(out_ptr + 2 * n, z0)
    tl.store(out_ptr + 2 * n + 1, z1)


@triton.jit(do_not_specialize=["seed_low", "seed_high", "stream"])
def _normals_kernel(id_ptr, row_ptr, out_ptr, first, seed_low, seed_high, stream, COUNT: tl.constexpr):
    block = (first + tl.arange(0, COUNT)).to(tl.uint32)
    last = philox.last_word(tl.load(row_ptr), stream)
    z = philox.block_normals(block, tl.load(id_ptr), last, seed_low, seed_high)
    tl.store(out_ptr + tl.arange(0, 4 * COUNT), tl.reshape(z, [4 * COUNT]))


def ulp(ours, exact):
    """The greatest distance of float32 numbers from float64 ones, in units of the last place."""
    return float((np.abs(ours.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32))).max())


def exact_box_muller(words):
    """The contract's formula in float64, for uint32 words [N, 2]."""
    u = words[:, 0].astype(np.float32) * np.float32(2.0**-32) + np.float32(2.0**-33)
    turns = words[:, 1].view(np.int32).astype(np.float32).astype(np.float64) * 2.0**-32
    # Reduced to quarter turns first: cos(2 pi a) near its zeros is beyond float64's own reduction.
    quadrant = np.rint(4 * turns)
    rest = 2 * np.pi * (turns - quadrant / 4)
    cosine, sine = np.cos(rest), np.sin(rest)
    which = quadrant.astype(np.int64) % 4
    radius = np.sqrt(-2 * np.log(u.astype(np.float64)))
    z0 = radius * np.choose(which, [cosine, -sine, -cosine, sine])
    z1 = radius * np.choose(which, [sine, cosine, -sine, -cosine])
    return np.stack([z0, z1], axis=1)


def test_philox_gives_the_published_words(device):
    """Random123's known-answer vectors for philox4x32-10, and NumPy's words for random counters and keys."""
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 1 << 32, (COUNT, 4), dtype=np.uint64)
    keys = rng.integers(0, 1 << 32, (COUNT, 2), dtype=np.uint64)
    counters[0], keys[0] = 0, 0
    counters[1], keys[1] = 0xFFFFFFFF, 0xFFFFFFFF
    counters[2], keys[2] = [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344], [0xA4093822, 0x299F31D0]
    arguments = (torch.tensor(values.astype(np.int64), device=device) for values in (counters, keys))
    out = torch.zeros(COUNT, 4, dtype=torch.int64, device=device)
    _words_kernel[(1,)](*arguments, out, COUNT)
    assert [f"{word:08x}" for word in out[0].tolist()] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    assert [f"{word:08x}" for word in out[1].tolist()] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]
    assert [f"{word:08x}" for word in out[2].tolist()] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]
    assert np.array_equal(out.cpu().numpy(), noise.philox4x32(counters, keys).astype(np.int64))


def test_box_muller_keeps_its_relative_accuracy_at_the_edges(device):
    """u next to 0 and to 1, and angles next to every multiple of an eighth of a turn, where a normal is near 0."""
    top = (1 << 32) - 1
    uniform = [0, 1, 2, 3, 255, 1 << 23, 1 << 24, 1 << 31, (1 << 31) - 1, 0xAAAAAAAA, 0xAAAAAAAB]
    uniform += [top, top - 1, top - 127, top - 128, top - 129, top - 255, top - 256, top - 257, top - 1000]
    angle = [(k << 29) + d for k in range(8) for d in (-129, -128, -127, -64, -2, -1, 0, 1, 2, 63, 64, 65, 128, 300)]
    words = np.array([(u, a & top) for u in uniform for a in angle], dtype=np.int64)
    padded = np.zeros((COUNT, 2), dtype=np.int64)
    padded[: len(words)] = words
    out = torch.zeros(COUNT, 2, device=device)
    _box_muller_kernel[(1,)](torch.tensor(padded, device=device), out, COUNT)
    ours, exact = out.cpu().numpy(), exact_box_muller(padded.astype(np.uint32))
    zero = exact == 0
    assert np.array_equal(ours[zero], exact[zero])
    assert ulp(ours[~zero], exact[~zero]) <= NORMAL_ULP


@pytest.mark.parametrize("seed", [0, 1, (1 << 31) + 5, (1 << 64) - 1])
@pytest.mark.parametrize("sample_id", [0, 7, (1 << 32) - 1, (1 << 40) + 3, (1 << 63) - 1])
def test_normals_are_those_of_the_contract(device, seed, sample_id):
    count = 1 << 14
    stream, row = 9, (1 << 28) - 1
    out = torch.zeros(4 * count, device=device)
    ids, rows = (torch.tensor([value], device=device) for value in (sample_id, row))
    _normals_kernel[(1,)](ids, rows, out, 0, *philox.seed_words(seed), stream, count)
    exact = noise.normals(seed, [sample_id], 4 * count, stream, row)[0]
    assert ulp(out.cpu().numpy(), exact.astype(np.float64)) <= NORMAL_ULP


def test_normals_of_late_blocks(device):
    """Elements up to 2^34: block numbers use all 32 bits."""
    count = 64
    first = (1 << 32) - count
    out = torch.zeros(4 * count, device=device)
    ids = torch.tensor([5], device=device)
    _normals_kernel[(1,)](ids, ids, out, first, *philox.seed_words(3), 2, count)
    counter = np.zeros((count, 4), dtype=np.uint64)
    counter[:, 0] = np.arange(first, first + count)
    counter[:, 1], counter[:, 3] = 5, (2 << 28) | 5
    exact = exact_box_muller(noise.philox4x32(counter, [3, 0]).reshape(-1, 2)).reshape(-1)
    assert ulp(out.cpu().numpy(), exact) <= NORMAL_ULP


def test_seed_words_are_the_bits_of_the_seed():
    for seed in (0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32, (1 << 63) + 9, (1 << 64) - 1):
        for value in (seed, seed - (1 << 64) if seed >> 63 else seed):
            words = philox.seed_words(value)
            assert all(-(1 << 31) <= word < 1 << 31 for word in words)
            assert [word & noise.MASK for word in words] == [seed & noise.MASK, seed >> 32]
