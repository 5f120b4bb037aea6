"""The schemas that follow from the ops' calls: those that C++ is registered under, and that exported programs name."""

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from fastdiff import ops
from fastdiff.calls import Decoder, Mutated, SymInt
from fastdiff.ops._schema import schema

NORM = (
    "Tensor x, Tensor? x2, Tensor? residual, Tensor? added_bias, Tensor? added_time, Tensor weight, Tensor bias, "
    "Tensor? scale, Tensor? shift"
)
NORM_BACKWARD = (
    "Tensor grad_y, Tensor? grad_sum, Tensor x, Tensor? x2, Tensor? added_bias, Tensor? added_time, Tensor weight, "
    "Tensor bias, Tensor? scale, Tensor? shift, Tensor mean, Tensor rstd, bool act, bool want_added"
)
BOUND = "Tensor x0, Tensor x_t, Tensor t, Tensor table, float? clip, bool learned_variance"
SCHEMAS = {
    "attention": "(Tensor qkv, int num_heads, str layout, float scale) -> (Tensor, Tensor)",
    "attention_backward": (
        "(Tensor grad, Tensor qkv, Tensor out, Tensor lse, int num_heads, str layout, float scale) -> Tensor"
    ),
    "bound_loss": (
        f"(Tensor output, Tensor? target, {BOUND}, bool detach_mean, str decoder, int levels) -> (Tensor, Tensor)"
    ),
    "bound_loss_backward": (
        f"(Tensor output, Tensor? grad_mse, Tensor? grad_bound, Tensor? target, {BOUND}, bool detach_mean, "
        "str decoder, int levels) -> Tensor"
    ),
    "bound_terms": f"(Tensor output, {BOUND}, str decoder, int levels) -> (Tensor, Tensor)",
    "conv2d_fused": (
        "(Tensor x, Tensor weight, Tensor? bias, Tensor? gain, Tensor? offset, Tensor? time, Tensor? residual, "
        "int stride, int padding, bool act, bool want_statistics) -> (Tensor, Tensor, Tensor)"
    ),
    "conv3x3": "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor",
    "conv3x3_backward": "(Tensor grad, Tensor x, Tensor weight, bool want_input) -> (Tensor, Tensor)",
    "column_sums": "(Tensor x) -> Tensor",
    "diffuse": (
        "(Tensor x0, Tensor t, Tensor table, Tensor? noise, Tensor sample_ids, Tensor row, SymInt seed, int stream, "
        "int levels, ScalarType dtype, bool want_target) -> (Tensor, Tensor)"
    ),
    "dropout": "(Tensor x, Tensor seed, float p, Tensor? sample_ids) -> Tensor",
    "group_norm_act": f"({NORM}, int groups, float eps, bool act) -> (Tensor, Tensor, Tensor, Tensor)",
    "group_norm_act_cpu": f"({NORM}, int groups, float eps, bool act) -> (Tensor, Tensor, Tensor, Tensor)",
    "group_norm_act_backward": (f"({NORM_BACKWARD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"),
    "group_norm_act_backward_cpu": f"({NORM_BACKWARD}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    "linear": "(Tensor x, Tensor weight, Tensor? bias, Tensor? residual) -> Tensor",
    "linear_backward": "(Tensor grad, Tensor x, Tensor weight, bool want_input) -> (Tensor, Tensor)",
    "mse": "(Tensor output, Tensor target) -> Tensor",
    "mse_backward": "(Tensor grad, Tensor output, Tensor target) -> Tensor",
    "posterior_mean": "(Tensor x_t, Tensor model_output, Tensor t, Tensor table, float? clip) -> Tensor",
    "step": (
        "(Tensor x, Tensor? model_output, Tensor rows, Tensor row, Tensor? noise, Tensor sample_ids, SymInt seed, "
        "bool learned_variance, Tensor(a!)? base, Tensor(b!)? history, Tensor(c!)? pred_out, Tensor(d!) out) -> ()"
    ),
}


class EveryType(NamedTuple):
    image: Tensor
    other: Tensor | None
    written: Mutated
    also_written: Mutated | None
    seed: SymInt
    count: int
    is_on: bool
    clip: float | None
    decoder: Decoder
    dtype: torch.dtype


@pytest.mark.parametrize("name", SCHEMAS)
def test_schema_of_an_op_is_the_one_that_is_promised(name):
    assert str(getattr(torch.ops.fastdiff, name).default._schema) == f"fastdiff::{name}{SCHEMAS[name]}"


def test_schema_knows_every_type():
    expected = (
        "(Tensor image, Tensor? other, Tensor(a!) written, Tensor(b!)? also_written, SymInt seed, int count, "
        "bool is_on, float? clip, str decoder, ScalarType dtype) -> "
    )
    assert schema(EveryType, type(None)) == expected + "()"
    assert schema(EveryType, Tensor) == expected + "Tensor"
    assert schema(EveryType, tuple[Tensor, Tensor]) == expected + "(Tensor, Tensor)"


def test_ops_take_their_arguments_by_name():
    x, target = torch.zeros(2, 3), torch.ones(2, 3)
    assert torch.equal(torch.ops.fastdiff.mse(output=x, target=target), ops.mse(x, target))
