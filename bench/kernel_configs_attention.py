"""The configurations of attention that bench/kernel_report.py compiles and tests/kernels/test_compile.py checks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from kernel_configs_group_norm import one_of
from torch import Tensor

from fastdiff.calls import AttentionBackwardCall, AttentionCall
from fastdiff.kernels.attention import launch_attention
from fastdiff.kernels.attention_backward import launch_attention_backward

BATCH, HEADS = 16, 2


def attention_cases(
    head_dim: int, num_tokens: int, dtype: str, layout: str = "legacy", *, channel_major: bool = False
) -> dict[str, Callable[[], object]]:
    """The launches of one problem: "forward", "dq", and "dkv", or "dk" and "dv" where they are apart."""

    def packed(parts: int) -> Tensor:
        size = (BATCH, num_tokens, parts * HEADS * head_dim)
        if channel_major:
            size = (size[0], size[2], size[1])
        x = torch.empty(size, dtype=getattr(torch, dtype), device="meta")
        return x.transpose(1, 2) if channel_major else x

    qkv, out = packed(3), packed(1)
    lse = torch.empty((BATCH, HEADS, num_tokens), device="meta")
    arguments = (HEADS, layout, 0.125)
    backward = partial(launch_attention_backward, AttentionBackwardCall(out, qkv, out, lse, *arguments))
    apart = dtype == "float32" or head_dim > 128 or layout == "edm"
    return {
        "forward": partial(launch_attention, AttentionCall(qkv, *arguments)),
        **{name: one_of(backward, i) for i, name in enumerate(("dq", "dk", "dv") if apart else ("dq", "dkv"))},
    }


_PROBLEMS = {
    **{f"bfloat16, d {d}": attention_cases(d, 256, "bfloat16") for d in (32, 64, 128, 256, 512)},
    **{f"float32, d {d}": attention_cases(d, 256, "float32") for d in (64, 256, 512)},
    "float16, d 64": attention_cases(64, 1024, "float16", "new"),
    "bfloat16, d 64, channel-major": attention_cases(64, 256, "bfloat16", "new", channel_major=True),
    "bfloat16, d 256, channel-major": attention_cases(256, 256, "bfloat16", "new", channel_major=True),
    # Masks of tokens and of channels, and less than a tile.
    "bfloat16, d 48, 1000 tokens": attention_cases(48, 1000, "bfloat16"),
    "bfloat16, d 128, 1000 tokens": attention_cases(128, 1000, "bfloat16"),
    "bfloat16, d 192, 63 tokens": attention_cases(192, 63, "bfloat16"),
    "bfloat16, d 384, 1000 tokens": attention_cases(384, 1000, "bfloat16"),
    "float32, d 64, 1000 tokens": attention_cases(64, 1000, "float32"),
    "bfloat16, d 64, 16 tokens": attention_cases(64, 16, "bfloat16"),
    "bfloat16, d 256, 16 tokens": attention_cases(256, 16, "bfloat16"),
    "bfloat16, d 64, edm": attention_cases(64, 256, "bfloat16", "edm"),
}
CASES: dict[str, Callable[[], object]] = {
    f"attention {kernel} {problem}": launch for problem, cases in _PROBLEMS.items() for kernel, launch in cases.items()
}
