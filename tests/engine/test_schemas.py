"""The ops that run plans: what they write is what their schemas say, and the extension has them."""

import torch

import fastdiff.engine  # noqa: F401
from fastdiff import ops

WRITTEN = {
    "plan_pack": {"packed"},
    "plan_scratch": set(),
    "plan_forward": {"arena", "scratch", "out"},
    "plan_sample": {"x", "arena", "scratch", "model_output", "base", "history", "pred_out"},
}


def test_schemas_name_all_that_is_written():
    for name, written in WRITTEN.items():
        schema = getattr(torch.ops.fastdiff, name).default._schema
        assert {a.name for a in schema.arguments if a.alias_info and a.alias_info.is_write} == written, name
        # Each is written by itself: none shares memory with another.
        aliases = [tuple(a.alias_info.before_set) for a in schema.arguments if a.alias_info]
        assert len(set(aliases)) == len(aliases)


def test_plans_are_run_by_the_extension():
    if ops.has_extension():
        for name in WRITTEN:
            assert torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{name}", "CPU")
