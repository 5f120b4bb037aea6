"""The launchers of the Triton kernels, for the engine: the one place where they are imported. It needs Triton."""

from fastdiff.kernels.add import launch_add
from fastdiff.kernels.attention import launch_attention
from fastdiff.kernels.attention_tiles import takes_head
from fastdiff.kernels.diffuse import launch_diffuse
from fastdiff.kernels.group_norm_act import GroupNormActOut, launch_group_norm_act, partial_shape
from fastdiff.kernels.select import launch_select
from fastdiff.kernels.step import launch_step

__all__ = [
    "GroupNormActOut",
    "launch_add",
    "launch_attention",
    "launch_diffuse",
    "launch_group_norm_act",
    "launch_select",
    "launch_step",
    "partial_shape",
    "takes_head",
]
