"""The noise contract of `fastdiff.process.noise` as Triton device functions."""

from __future__ import annotations

import triton
import triton.language as tl

from fastdiff.process import noise

M0, M1 = tl.constexpr(noise.M0), tl.constexpr(noise.M1)
W0, W1 = tl.constexpr(noise.W0), tl.constexpr(noise.W1)
NUM_ROUNDS = tl.constexpr(noise.NUM_ROUNDS)
STREAM_SHIFT = tl.constexpr(noise.STREAM_SHIFT)

# Adding 1.5 * 2^23 rounds a small float32 to a whole number and leaves that number in the sum's low bits.
ROUND = tl.constexpr(12582912.0)
SIGN_BIT = tl.constexpr(0x80000000)
# -log(1 + f) = -f + f^2 P(f) for f in [-1/3, 1/3]: P's coefficients, highest power first, of the polynomial with the
# least greatest relative error, 2.6e-8. BITS_2_3 are the bits of 2/3, where the range of 1 + f begins.
BITS_2_3 = tl.constexpr(0x3F2AAAAB)
EXPONENT_BITS = tl.constexpr(-0x800000)
LOG_2_BY_2_23 = tl.constexpr(8.262958294867817e-08)
L7, L6 = tl.constexpr(-0.14026359), tl.constexpr(0.15388539)
L5, L4 = tl.constexpr(-0.13995807), tl.constexpr(0.16415961)
L3, L2 = tl.constexpr(-0.20011169), tl.constexpr(0.25007819)
L1, L0 = tl.constexpr(-0.33333198), tl.constexpr(0.49999936)
# sqrt(2) sin(pi h / 2) = h S(h^2) and sqrt(2) cos(pi h / 2) = C(h^2) for h in [-1/2, 1/2]: likewise, 3e-9 and 3.3e-8.
S3, S2 = tl.constexpr(-0.00650773), tl.constexpr(0.11268458)
S1, S0 = tl.constexpr(-0.91353029), tl.constexpr(2.22144146)
C3, C2 = tl.constexpr(-0.02884795), tl.constexpr(0.35863741)
C1, C0 = tl.constexpr(-1.74471055), tl.constexpr(1.41421352)


@triton.jit
def philox4x32(c0, c1, c2, c3, k0, k1):
    """Philox4x32-10: four uint32 words of the uint32 counter (c0, c1, c2, c3) and key (k0, k1), any common shape."""
    for _ in tl.static_range(NUM_ROUNDS):
        p0, p1 = c0.to(tl.uint64) * M0, c2.to(tl.uint64) * M1
        c0, c1 = (p1 >> 32).to(tl.uint32) ^ c1 ^ k0, p1.to(tl.uint32)
        c2, c3 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1, p0.to(tl.uint32)
        k0 += W0
        k1 += W1
    return c0, c1, c2, c3


@triton.jit
def box_muller(r0, r1):
    """Two float32 normals of two uint32 words.

    sqrt(-2 log u) (cos 2 pi a, sin 2 pi a) = sqrt(-log u) (sqrt(2) cos, sqrt(2) sin). The angle is reduced exactly, in
    quarter turns, and u is split into exponent and mantissa, so that the relative error stays small where a normal
    is near 0: 3.6 ulp were seen over 16.8 million draws with an exact square root. NVIDIA's adds up to 2 (its relative
    error is at most 2^-23, PTX ISA). All else is plain float32 arithmetic, fused or not.
    """
    u = r0.to(tl.float32) * 2.0**-32 + 2.0**-33
    bits = u.to(tl.int32, bitcast=True)
    exponent = (bits - BITS_2_3) & EXPONENT_BITS
    f = (bits - exponent).to(tl.float32, bitcast=True) - 1.0
    p = ((((((L7 * f + L6) * f + L5) * f + L4) * f + L3) * f + L2) * f + L1) * f + L0
    minus_log = exponent.to(tl.float32) * -LOG_2_BY_2_23 + (p * (f * f) - f)
    radius = tl.sqrt(minus_log)

    quarters = r1.to(tl.int32, bitcast=True).to(tl.float32) * 2.0**-30
    rounded = quarters + ROUND
    h = quarters - (rounded - ROUND)
    g = h * h
    sine = (((S3 * g + S2) * g + S1) * g + S0) * h
    cosine = ((C3 * g + C2) * g + C1) * g + C0
    quadrant = rounded.to(tl.uint32, bitcast=True)
    swap = (quadrant & 1) != 0
    z0 = (radius * tl.where(swap, sine, cosine)).to(tl.uint32, bitcast=True) ^ (((quadrant + 1) << 30) & SIGN_BIT)
    z1 = (radius * tl.where(swap, cosine, sine)).to(tl.uint32, bitcast=True) ^ ((quadrant << 30) & SIGN_BIT)
    return z0.to(tl.float32, bitcast=True), z1.to(tl.float32, bitcast=True)


@triton.jit
def block_normals(block, sample_id, last, seed_low, seed_high):
    """The normals of elements 4 block .. 4 block + 3 of a sample.

    Args:
        block: uint32 [...], element number // 4.
        sample_id: int64, one.
        last: uint32, one: the counter's last word, see `last_word`.
        seed_low, seed_high: The seed's two words, as int32.

    Returns:
        float32 [..., 2, 2], in order.
    """
    zero = block * 0
    low, high = zero + sample_id.to(tl.uint32), zero + (sample_id >> 32).to(tl.uint32)
    k0, k1 = zero + seed_low.to(tl.uint32), zero + seed_high.to(tl.uint32)
    r0, r1, r2, r3 = philox4x32(block, low, high, zero + last, k0, k1)
    z0, z1 = box_muller(r0, r1)
    z2, z3 = box_muller(r2, r3)
    return tl.join(tl.join(z0, z2), tl.join(z1, z3))


@triton.jit
def last_word(row, stream):
    """The counter's last word, uint32, from an int64 row and a stream."""
    return (row.to(tl.int32) | (stream << STREAM_SHIFT)).to(tl.uint32)


@triton.jit
def load_seed(ptr):
    """The two words of an int64 seed in memory, low first."""
    seed = tl.load(ptr)
    return seed.to(tl.int32), (seed >> 32).to(tl.int32)


def seed_words(seed: int) -> tuple[int, int]:
    """The two 32-bit words of a seed, low first, each as the signed number that a kernel's int32 argument holds."""
    low, high = seed & noise.MASK, (seed >> 32) & noise.MASK
    return low - ((low >> 31) << 32), high - ((high >> 31) << 32)
