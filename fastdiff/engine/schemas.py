"""The ops that run a plan in C++: one evaluation of a network, and whole stretches of a coefficient table.

They have no reference of their own: `fastdiff.engine.reference_executor` runs the same plans in PyTorch. `plan_pack`
lays out a layer's weights for them.
"""

from __future__ import annotations

from fastdiff.ops._dispatch import LIBRARY

LIBRARY.define("plan_pack(Tensor weight, Tensor(a!) packed, int algorithm, bool pairs) -> ()")
LIBRARY.define("plan_scratch(Tensor code, int batch, int part, int lanes) -> int")
LIBRARY.define(
    "plan_forward(Tensor x, Tensor code, Tensor weights, Tensor times, int input, int output, Tensor(a!) arena, "
    "Tensor(b!) scratch, int part, int lanes, Tensor(c!) out) -> ()"
)
LIBRARY.define(
    "plan_sample(Tensor(a!) x, Tensor code, Tensor weights, Tensor times, int input, int output, Tensor(b!) arena, "
    "Tensor(c!) scratch, int part, int lanes, Tensor(d!) model_output, Tensor rows, Tensor row_numbers, int first_row, "
    "int last_row, int first_time, Tensor sample_ids, SymInt seed, bool learned_variance, Tensor(e!)? base, "
    "Tensor(f!)? history, Tensor(g!)? pred_out) -> ()"
)
