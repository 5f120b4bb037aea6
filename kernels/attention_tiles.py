"""How attention is cut into tiles: the host's side, and the device functions that its kernels share."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.runtime.driver import driver

from fastdiff.kernels.launching import cdiv, next_power_of_2
from fastdiff.tensors import MAX_HEAD_DIM

LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


@dataclass(frozen=True)
class Tile:
    """How one program works.

    Attributes:
        own: Tokens whose results it makes: queries in "forward" and "dq", keys in the others.
        other: Tokens that it takes at a time, in a loop over all of them.
        block_d: Channels of the head that it makes; wider heads are cut into chunks, one per program.
        block_k: Channels of which it sums a score at a time; all of the head's if it is block_d, and then it keeps its
            own tokens on chip.
        num_warps: Of the program.
        num_stages: Loads in flight.
    """

    own: int
    other: int
    block_d: int
    block_k: int
    num_warps: int
    num_stages: int


# Family of GPUs, bytes of an element and kernel -> widest head -> tile. "dkv" makes dk and dv in one launch; where only
# "dk" and "dv" have a tile, both sums would not fit in registers. Chosen from the compiler's report (nothing spills, in
# sm_80 under 99 KiB of shared memory, so that smaller cards of its kind have room, in hip under 64); no GPU has
# timed them.
TILES = {
    ("sm_90", 2, "forward"): {
        64: Tile(128, 128, 64, 64, 8, 3),
        128: Tile(128, 64, 128, 128, 8, 3),
        256: Tile(128, 64, 256, 256, 8, 2),
        512: Tile(64, 64, 256, 64, 8, 2),
    },
    ("sm_90", 2, "dq"): {
        64: Tile(128, 128, 64, 64, 8, 2),
        128: Tile(128, 64, 128, 128, 8, 2),
        256: Tile(64, 32, 256, 256, 8, 2),
        512: Tile(64, 64, 256, 64, 8, 2),
    },
    ("sm_90", 2, "dkv"): {64: Tile(128, 64, 64, 64, 8, 2), 128: Tile(128, 32, 128, 128, 8, 2)},
    ("sm_90", 2, "dk"): {256: Tile(128, 32, 256, 256, 8, 2), 512: Tile(64, 64, 256, 64, 8, 2)},
    ("sm_90", 2, "dv"): {256: Tile(128, 32, 256, 256, 8, 2), 512: Tile(64, 64, 256, 64, 8, 2)},
    ("sm_80", 2, "forward"): {
        64: Tile(128, 64, 64, 64, 8, 3),
        128: Tile(128, 64, 128, 128, 8, 2),
        256: Tile(64, 32, 256, 256, 8, 2),
        512: Tile(64, 64, 256, 64, 8, 2),
    },
    ("sm_80", 2, "dq"): {
        64: Tile(128, 64, 64, 64, 8, 2),
        128: Tile(128, 32, 128, 128, 8, 2),
        256: Tile(64, 32, 256, 256, 8, 1),
        512: Tile(64, 32, 256, 64, 8, 2),
    },
    ("sm_80", 2, "dkv"): {64: Tile(64, 32, 64, 64, 4, 2), 128: Tile(64, 64, 128, 128, 8, 2)},
    ("sm_80", 2, "dk"): {256: Tile(64, 32, 256, 256, 8, 1), 512: Tile(64, 32, 256, 64, 8, 2)},
    ("sm_80", 2, "dv"): {256: Tile(64, 32, 256, 256, 8, 1), 512: Tile(64, 32, 256, 64, 8, 2)},
}
_FLOAT32 = {
    "forward": {64: Tile(64, 32, 64, 32, 8, 2), 512: Tile(64, 32, 128, 32, 8, 2)},
    "dq": {64: Tile(32, 32, 64, 32, 4, 2), 512: Tile(64, 32, 128, 32, 8, 2)},
    "dk": {64: Tile(32, 32, 64, 32, 4, 2), 512: Tile(64, 32, 128, 32, 8, 2)},
    "dv": {64: Tile(32, 32, 64, 32, 4, 2), 512: Tile(64, 32, 128, 32, 8, 2)},
}
_HIP = {
    "forward": {128: Tile(64, 32, 128, 128, 4, 1), 512: Tile(64, 32, 128, 64, 4, 1)},
    "dq": {128: Tile(64, 32, 128, 128, 4, 1), 512: Tile(64, 32, 128, 64, 4, 1)},
    "dk": {512: Tile(64, 32, 128, 64, 4, 1)},
    "dv": {512: Tile(64, 32, 128, 64, 4, 1)},
}
# Where there are no 16 bytes of neighbours, as in EDM's packing: each element needs its own address.
SCATTERED = Tile(32, 32, 64, 32, 8, 1)
# Where neither tokens nor channels are masked there are registers for more.
WHOLE = {("sm_90", 2, "dq", 256): Tile(64, 64, 256, 256, 8, 2)}
TILES |= {(family, 4, kernel): tiles for family in ("sm_80", "sm_90") for kernel, tiles in _FLOAT32.items()}
TILES |= {("hip", size, kernel): tiles for size in (2, 4) for kernel, tiles in _HIP.items()}


@dataclass(frozen=True)
class Cut:
    """The tile for a problem, and what follows from both.

    Attributes:
        tile: The program's.
        head_dim: Channels of a head.
        chunks: Programs for the channels of one head.
        num_tiles: Tiles of `tile.own` tokens in a sequence.
        even_own: Whether they divide it.
        even_other: Whether tiles of `tile.other` tokens do.
        precision: Of dot products of float32 numbers, in Triton's words.
    """

    tile: Tile
    head_dim: int
    chunks: int
    num_tiles: int
    even_own: bool
    even_other: bool
    precision: str

    def constants(self) -> dict[str, int | bool | str]:
        """The kernels' compile-time arguments and launch options."""
        return {
            "HEAD_DIM": self.head_dim,
            "BLOCK_D": self.tile.block_d,
            "BLOCK_K": self.tile.block_k,
            "CHUNKS": self.chunks,
            "OWN": self.tile.own,
            "OTHER": self.tile.other,
            "EVEN_OWN": self.even_own,
            "EVEN_OTHER": self.even_other,
            "PRECISION": self.precision,
            # Triton's interpreter gets 16-bit products wrong.
            "WIDEN": triton.knobs.runtime.interpret,
            "num_warps": self.tile.num_warps,
            "num_stages": self.tile.num_stages,
            "enable_fp_fusion": True,
        }


def cut_tiles(kernel: str, q: Tensor) -> Cut:
    """Cut q [B, heads, S, d], and what goes with it, for one of the kernels.

    Raises:
        ValueError: d or the type is none that the kernels take.
    """
    num_tokens, head_dim = q.shape[2:]
    check_head(q)
    family = gpu_family(q)
    tile = _tile(family, kernel, q)
    # Short sequences and narrow heads get smaller tiles, and no more warps than one for 8 tokens.
    length = max(16 if tile.block_k == tile.block_d else 64, next_power_of_2(num_tokens))
    own, width = min(tile.own, length), min(tile.block_d, next_power_of_2(head_dim))
    block_k = width if tile.block_k == tile.block_d else max(16, min(tile.block_k, width // 2))
    num_warps = tile.num_warps if own == tile.own else min(tile.num_warps, own // 8)
    tile = Tile(own, min(tile.other, length), width, block_k, num_warps, tile.num_stages)
    return Cut(
        tile,
        head_dim,
        cdiv(head_dim, width),
        cdiv(num_tokens, own),
        num_tokens % own == 0,
        num_tokens % tile.other == 0,
        product_precision(family, q.dtype),
    )


def backward_kernels(q: Tensor) -> tuple[str, ...]:
    """The launches that make dk and dv: one for both, or one for each."""
    table = TILES.get((gpu_family(q), q.dtype.itemsize, "dkv"), {})
    return ("dkv",) if q.shape[3] <= max(table, default=0) and not _is_scattered(q) else ("dk", "dv")


def takes_head(head_dim: int) -> bool:
    """Whether the kernels take heads of so many channels."""
    return head_dim % 16 == 0 and 16 <= head_dim <= MAX_HEAD_DIM


def check_head(q: Tensor) -> None:
    """Raise ValueError for a head size or a type that the kernels do not take."""
    head_dim = q.shape[3]
    if q.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        raise ValueError(f"the GPU kernels take float32, bfloat16 and float16, got {q.dtype}: use 'reference'")
    if not takes_head(head_dim):
        raise ValueError(
            f"the GPU kernels take head sizes that are multiples of 16, 16 to {MAX_HEAD_DIM}, got {head_dim}: "
            "use implementation 'sdpa'"
        )


def _tile(family: str, kernel: str, q: Tensor) -> Tile:
    if _is_scattered(q):
        return SCATTERED
    whole = WHOLE.get((family, q.dtype.itemsize, kernel, q.shape[3]))
    if whole is not None and q.shape[2] % max(whole.own, whole.other) == 0:
        return whole
    table = TILES[family, q.dtype.itemsize, kernel]
    return table[min(widest for widest in table if q.shape[3] <= widest)]


def _is_scattered(q: Tensor) -> bool:
    token, channel = q.stride()[2:]
    return channel != 1 and (token != 1 or q.shape[2] % 8 != 0)


def gpu_family(x: Tensor) -> str:
    """The key of the tables of tiles for the GPU that x is on: "sm_90", "sm_80" or "hip"."""
    if triton.knobs.runtime.interpret:
        return "sm_80"
    # Triton is asked about the current device.
    with torch.cuda.device_of(x):
        target = driver.active.get_current_target()
    if target.backend == "hip":
        return "hip"
    # Data-centre cards since Hopper have 227 KiB of shared memory.
    return "sm_90" if target.arch in (90, 100, 103) else "sm_80"


def product_precision(family: str, dtype: torch.dtype) -> str:
    """Of dot products, in Triton's words; PyTorch's setting for matrix products on a GPU decides in float32."""
    if dtype != torch.float32 or family == "hip":
        return "ieee"
    # The new setting: the older ones, which write it as well, raise where someone has set it alone. Three
    # TensorFloat-32 products are good to float32's own precision, and still faster than one on ordinary cores.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "tf32x3"


@triton.jit
def place(num_tiles, num_heads, CHUNKS: tl.constexpr):
    """A program's tile, chunk of channels, and number of sample and head in [0, B * heads), the sample and the head."""
    program = tl.program_id(0)
    tile = program % num_tiles
    chunk = program // num_tiles % CHUNKS
    pair = program // (num_tiles * CHUNKS)
    return tile, chunk, pair, (pair // num_heads).to(tl.int64), (pair % num_heads).to(tl.int64)


@triton.jit
def load_tile(
    ptr,
    left,
    chunk,
    token_stride,
    channel_stride,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    EVEN: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """A chunk [ROWS, BLOCK_D] of the `left` tokens that start at ptr, 0 beyond them; float32 if WIDEN.

    EVEN: there are ROWS tokens.
    """
    rows = tl.arange(0, ROWS)[:, None]
    channels = chunk * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    ptr += rows * token_stride + channels * channel_stride
    if EVEN and HEAD_DIM % BLOCK_D == 0:
        x = tl.load(ptr)
    elif EVEN:
        x = tl.load(ptr, mask=channels < HEAD_DIM, other=0.0)
    elif HEAD_DIM % BLOCK_D == 0:
        x = tl.load(ptr, mask=rows < left, other=0.0)
    else:
        x = tl.load(ptr, mask=(rows < left) & (channels < HEAD_DIM), other=0.0)
    return x.to(tl.float32) if WIDEN else x


@triton.jit
def store_tile(
    ptr,
    x,
    left,
    chunk,
    token_stride,
    channel_stride,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    EVEN: tl.constexpr,
):
    """Write a chunk [ROWS, BLOCK_D], as `load_tile` reads it."""
    rows = tl.arange(0, ROWS)[:, None]
    channels = chunk * BLOCK_D + tl.arange(0, BLOCK_D)[None, :]
    x = x.to(ptr.dtype.element_ty)
    ptr += rows * token_stride + channels * channel_stride
    if EVEN and HEAD_DIM % BLOCK_D == 0:
        tl.store(ptr, x)
    elif EVEN:
        tl.store(ptr, x, mask=channels < HEAD_DIM)
    elif HEAD_DIM % BLOCK_D == 0:
        tl.store(ptr, x, mask=rows < left)
    else:
        tl.store(ptr, x, mask=(rows < left) & (channels < HEAD_DIM))


@triton.jit
def dot_slices(
    a_ptr,
    b_ptr,
    a_left,
    b_left,
    a_token,
    a_channel,
    b_token,
    b_channel,
    A_ROWS: tl.constexpr,
    B_ROWS: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    A_EVEN: tl.constexpr,
    B_EVEN: tl.constexpr,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
):
    """a b^T [A_ROWS, B_ROWS] over all channels, BLOCK_K at a time: for heads too wide to be held at once."""
    total = tl.zeros([A_ROWS, B_ROWS], tl.float32)
    for part in range(0, (HEAD_DIM + BLOCK_K - 1) // BLOCK_K):
        a = load_tile(a_ptr, a_left, part, a_token, a_channel, A_ROWS, BLOCK_K, HEAD_DIM, A_EVEN, WIDEN)
        b = load_tile(b_ptr, b_left, part, b_token, b_channel, B_ROWS, BLOCK_K, HEAD_DIM, B_EVEN, WIDEN)
        total = tl.dot(a, tl.trans(b), total, input_precision=PRECISION)
    return total
