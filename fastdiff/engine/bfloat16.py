"""A plan whose large products are those of bfloat16 numbers, summed in float32."""

from __future__ import annotations

from dataclasses import replace

from fastdiff.engine.lower import CACHED_PRODUCTS
from fastdiff.engine.plan import VECTOR, Algorithm, Instruction, Plan

__all__ = ["in_bfloat16"]

# Height and width from which on a layer is computed by F(4x4, 3x3), and one of many channels by F(2x2, 3x3).
LEAST_FOR_TILES_OF_FOUR = 16
LEAST_FOR_TILES_OF_TWO = 8


def in_bfloat16(plan: Plan) -> Plan:
    """The same plan with weights, and what they are multiplied by, rounded to bfloat16.

    Layers that read or write fewer than 16 channels stay in float32: they take no time, and the image passes through
    them. So do all sums, norms, softmaxes and what lies between instructions.
    """
    return replace(plan, instructions=tuple(_converted(plan, instruction) for instruction in plan.instructions))


def _converted(plan: Plan, instruction: Instruction) -> Instruction:
    if instruction.op == "attention":
        return replace(instruction, products="bfloat16")
    if instruction.op != "conv":
        return instruction
    if plan.channels_in(instruction) < VECTOR or plan.buffers[instruction.target].channels < VECTOR:
        return instruction
    return replace(instruction, products="bfloat16", algorithm=choose_algorithm(plan, instruction))


def choose_algorithm(plan: Plan, instruction: Instruction) -> Algorithm:
    """How a layer is computed. It depends on the layer alone, so that a sample does not depend on its batch.

    Products take half as long as in float32, and reading the weights as well: tiles pay from larger images on. Tiles of
    two have less than half the error of tiles of four.
    """
    if instruction.algorithm == "direct":
        return "direct"
    out = plan.buffers[instruction.target]
    side = min(out.height, out.width)
    if side >= LEAST_FOR_TILES_OF_FOUR:
        return "winograd4"
    few = plan.channels_in(instruction) * out.channels <= CACHED_PRODUCTS
    return "winograd2" if side >= LEAST_FOR_TILES_OF_TWO or few else "direct"
