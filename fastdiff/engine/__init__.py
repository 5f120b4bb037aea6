"""The inference engine: a network is lowered to a plan, and executors run the plan."""

from fastdiff.engine.compiled import compile
from fastdiff.engine.lower import Unsupported, lower
from fastdiff.engine.native import NativeNetwork, Precision
from fastdiff.engine.plan import Buffer, Instruction, Placement, Plan, place
from fastdiff.engine.profile import InstructionTime, copy_speed, engine_peak, matrix_peak, products_made, profile
from fastdiff.engine.reference_executor import run_plan

__all__ = [
    "Buffer",
    "Instruction",
    "InstructionTime",
    "NativeNetwork",
    "Placement",
    "Plan",
    "Precision",
    "Unsupported",
    "compile",
    "copy_speed",
    "engine_peak",
    "lower",
    "matrix_peak",
    "place",
    "products_made",
    "profile",
    "run_plan",
]
