"""The ops: public wrappers over `torch.ops.fastdiff.*`, which check their arguments and choose an implementation."""

from fastdiff.ops._attention import attention, trains_on_cpu
from fastdiff.ops._conv2d_fused import conv2d_fused, conv2d_fused_with_statistics, norm_factors
from fastdiff.ops._conv3x3 import conv3x3
from fastdiff.ops._diffuse import diffuse
from fastdiff.ops._dispatch import EXTENSION_ERROR, Implementation, has_extension
from fastdiff.ops._dropout import dropout
from fastdiff.ops._group_norm_act import add_group_norm_act, group_norm_act, group_norm_act_beside
from fastdiff.ops._linear import linear
from fastdiff.ops._losses import bound_loss, bound_terms, hybrid_loss, mse
from fastdiff.ops._posterior_mean import posterior_mean
from fastdiff.ops._step import new_history, step, table_rows
from fastdiff.tensors import FLOAT_DTYPES, memory_format

__all__ = [
    "EXTENSION_ERROR",
    "FLOAT_DTYPES",
    "Implementation",
    "add_group_norm_act",
    "attention",
    "bound_loss",
    "bound_terms",
    "conv2d_fused",
    "conv2d_fused_with_statistics",
    "conv3x3",
    "diffuse",
    "dropout",
    "group_norm_act",
    "group_norm_act_beside",
    "has_extension",
    "hybrid_loss",
    "linear",
    "memory_format",
    "mse",
    "new_history",
    "norm_factors",
    "posterior_mean",
    "step",
    "table_rows",
    "trains_on_cpu",
]
