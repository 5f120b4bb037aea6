"""The oracle of `dropout`, in plain PyTorch, on any device: float32 arithmetic, float64 for float64 input.

It is read, not timed. The C++ kernel is held to it, and both to the words of the noise contract in NumPy.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastdiff.calls import DropoutCall
from fastdiff.ops.reference.noise import torch_words
from fastdiff.process.noise import Stream, factor_of_kept, last_kept
from fastdiff.tensors import compute_dtype, memory_format


def dropout(call: DropoutCall) -> Tensor:
    """x / (1 - p) where an element's word of the noise contract is below (1 - p) 2^32, and 0, whatever x is, elsewhere.

    A sample's elements count in memory order, so its mask is drawn for it as it lies there.

    Args:
        call: As for `fastdiff.ops.dropout`.

    Returns:
        Of x's shape, type and layout.

    Source: Srivastava et al. (2014), JMLR 15, 1929.
    """
    x, layout = call.x, memory_format(call.x)
    dense = x.permute(0, 2, 3, 1) if layout == torch.channels_last else x
    ids = torch.arange(x.shape[0], device=x.device) if call.sample_ids is None else call.sample_ids
    size, row = x[:1].numel(), torch.zeros(1, dtype=torch.int64, device=x.device)
    words = torch_words(int(call.seed), ids, size, Stream.DROPOUT, row)[:, :size]
    kept = (words <= last_kept(call.p)).view(dense.shape)
    kept = kept.permute(0, 3, 1, 2) if layout == torch.channels_last else kept
    y = torch.where(kept, x.to(compute_dtype(x)) * factor_of_kept(call.p), 0)
    return y.to(x.dtype).contiguous(memory_format=layout)
