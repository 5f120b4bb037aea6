"""The ops: schemas, fakes, autograd, dispatch and the public wrappers.

Each op is `torch.ops.fastdiff.NAME` with the reference under CompositeExplicitAutograd, C++ under CPU (when the
extension is built) and the Triton launcher under CUDA (imported on first use).
"""

from __future__ import annotations

import functools
import importlib
import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff import reference
from fastdiff.noise import MAX_ROW, Stream, check_seed
from fastdiff.table import ROW_WIDTH, CoefficientTable

Implementation = Literal["auto", "reference", "cpu", "triton"]
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BUILD_COMMAND = "pip install --no-build-isolation -e ."

try:
    importlib.import_module("fastdiff._C")
    EXTENSION_ERROR: ImportError | None = None
except ImportError as error:
    EXTENSION_ERROR = error

_library = torch.library.Library("fastdiff", "DEF")
_library.define(
    "diffuse(Tensor x0, Tensor t, Tensor table, Tensor? noise, Tensor sample_ids, Tensor row, SymInt seed, int stream, "
    "int levels, ScalarType dtype, bool want_target) -> (Tensor, Tensor)"
)
_library.define(
    "step(Tensor x, Tensor? model_output, Tensor rows, Tensor row, Tensor? noise, Tensor sample_ids, SymInt seed, "
    "bool learned_variance, Tensor(a!)? base, Tensor(b!)? history, Tensor(c!)? pred_out, Tensor(d!) out) -> ()"
)


def has_extension() -> bool:
    """Whether the C++ extension is loaded."""
    return EXTENSION_ERROR is None


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that an op keeps for x: channels_last where x is [B, C, H, W] in that layout, else contiguous."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def new_history(x: Tensor, depth: int) -> Tensor:
    """An uninitialised ring [depth, *x.shape] for `step`, each slot laid out as x."""
    flat: Tensor = torch.empty(
        (depth * x.shape[0], *x.shape[1:]), dtype=x.dtype, device=x.device, memory_format=memory_format(x)
    )
    history: Tensor = flat.unflatten(0, (depth, x.shape[0]))
    return history


def table_rows(
    table: CoefficientTable, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> Tensor:
    """The rows of a table as `step` reads them: [R, ROW_WIDTH], float32, or float64 for float64 states."""
    import numpy as np

    return torch.from_numpy(table.rows(np.float64 if dtype == torch.float64 else np.float32)).to(device)


def diffuse(
    x0: Tensor,
    t: Tensor,
    table: Tensor,
    *,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    row: int | Tensor = 0,
    stream: int = Stream.TRAIN_NOISE,
    noise: Tensor | None = None,
    levels: int = 256,
    dtype: torch.dtype | None = None,
    target: bool = True,
    implementation: Implementation = "auto",
) -> tuple[Tensor, Tensor]:
    """Noise images and give the training target, in one pass: x_t = c0 x_0 + c1 z, target = c2 x_0 + c3 z.

    Args:
        x0: [B, ...] float32, bfloat16, float16 or float64 in [-1, 1], or uint8 in [0, levels), scaled to [-1, 1].
        t: Timesteps, int64 [B], 0-based, in [0, T). On a GPU a t out of range gives NaN, since raising would wait
            for the device; everywhere else it raises.
        table: [T, 4] float32 (float64 for float64 images) on x0's device, from `Diffusion.noising_table`.
        seed: In [0, 2^64); with `sample_ids`, `row` and `stream` it fixes the noise (see `fastdiff.noise`).
        sample_ids: int64 [B]; 0..B-1 when None.
        row: Counter of the draw, for example the training step: one number or int64 [B], in [0, 2^28), which is not
            checked for a tensor on a GPU.
        stream: What the noise is for, see `Stream`.
        noise: Standard normal noise of x0's shape to use instead.
        levels: Number of values of uint8 data, 2 to 256.
        dtype: Of the results; x0's, or float32 for uint8.
        target: False leaves the target out (an empty tensor).
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        (x_t, target), both of x0's shape and memory format.

    Raises:
        ValueError: shapes, dtypes or ranges that do not fit.
        IndexError: t outside [0, T) or a tensor of rows outside [0, 2^28), on the CPU.
        RuntimeError: the named implementation is not available.

    Source: Ho et al. (2020), arXiv:2006.11239, eq. 4 and algorithm 1.
    """
    if x0.dtype != torch.uint8 and x0.dtype not in FLOAT_DTYPES:
        raise ValueError(f"x0 must be uint8 or floating point, got {x0.dtype}")
    if x0.ndim < 1:
        raise ValueError("x0 must have a batch dimension, got a scalar")
    if t.shape != x0.shape[:1] or t.dtype != torch.int64:
        raise ValueError(f"t must be int64 [{x0.shape[0]}], got {_describe(t)}")
    if table.ndim != 2 or table.shape[1] != 4 or table.dtype != reference.compute_dtype(x0):
        raise ValueError(
            f"table must be {_dtype_name(x0)} [T, 4] (from Diffusion.noising_table), got {_describe(table)}"
        )
    if not 2 <= levels <= 256:
        raise ValueError(f"levels must be in [2, 256], got {levels}")
    if not 0 <= int(stream) < 16:
        raise ValueError(f"stream must be in [0, 16), got {stream}")
    dtype = dtype or (torch.float32 if x0.dtype == torch.uint8 else x0.dtype)
    if dtype not in FLOAT_DTYPES or (dtype == torch.float64) != (x0.dtype == torch.float64):
        raise ValueError(f"dtype {dtype} does not fit images of {x0.dtype}: float64 goes with float64 only")
    ids, rows = _noise_arguments(x0, noise, sample_ids, row)
    arguments = (x0, t, table, noise, ids, rows, _signed(seed), int(stream), levels, dtype, target)
    return _dispatch("diffuse", x0, implementation, arguments)  # type: ignore[no-any-return]


def step(
    x: Tensor,
    model_output: Tensor | None,
    rows: Tensor,
    row: int | Tensor,
    *,
    seed: int = 0,
    sample_ids: Tensor | None = None,
    noise: Tensor | None = None,
    learned_variance: bool = False,
    base: Tensor | None = None,
    history: Tensor | None = None,
    pred_out: Tensor | None = None,
    out: Tensor | None = None,
    implementation: Implementation = "auto",
) -> Tensor:
    """Execute one row of a coefficient table; the formula stands in `fastdiff.table`. Inference only.

    Args:
        x: State [B, C, ...], float32, bfloat16, float16 or float64.
        model_output: [B, C, ...], or [B, 2C, ...] of which the second half is read only when `learned_variance`;
            any of the same dtypes. None where no row evaluates the model.
        rows: [R, ROW_WIDTH] from `table_rows`, on x's device.
        row: One row number, or int64 [1] or [B] on x's device, so that samples at different steps can share a batch.
            In [0, R). On a GPU a row out of range gives NaN; everywhere else it raises.
        seed: In [0, 2^64).
        sample_ids: int64 [B]; 0..B-1 when None.
        noise: Standard normal noise of x's shape to use instead of that of (seed, sample id, row).
        learned_variance: Scale the noise by the model's own variance.
        base: The saved state, x's shape, dtype and layout; updated in place. Needed where a row uses it.
        history: Ring of past predictions from `new_history`; updated in place. Needed where a row uses it.
        pred_out: Where to write the prediction, x's shape and dtype.
        out: Where to write the result; may be x itself. A new tensor when None.
        implementation: "auto" by device, or one by name; a named one that is not available raises.

    Returns:
        x' in `out`.

    Raises:
        ValueError: shapes, dtypes or layouts that do not fit, or tensors that require grad.
        IndexError: row outside [0, R) on the CPU.
        RuntimeError: the named implementation is not available.
    """
    if x.dtype not in FLOAT_DTYPES:
        raise ValueError(f"the state must be float32, bfloat16, float16 or float64, got {x.dtype}")
    if x.ndim < 2:
        raise ValueError(f"the state must be [B, C, ...], got shape {list(x.shape)}")
    if torch.is_grad_enabled() and (x.requires_grad or (model_output is not None and model_output.requires_grad)):
        raise ValueError("step is for inference only: call it under torch.no_grad(), or detach its inputs")
    if rows.ndim != 2 or rows.shape[1] != ROW_WIDTH or rows.dtype != reference.compute_dtype(x):
        raise ValueError(f"rows must be {_dtype_name(x)} [R, {ROW_WIDTH}] (from table_rows), got {_describe(rows)}")
    if model_output is not None:
        _check_model_output(x, model_output, learned_variance)
    elif learned_variance:
        raise ValueError("a learned variance needs the model's output")
    ids, row_tensor = _noise_arguments(x, noise, sample_ids, row)
    out = torch.empty_like(x, memory_format=memory_format(x)) if out is None else out
    for name, value in (("base", base), ("pred_out", pred_out), ("out", out)):
        if value is not None:
            _check_slot(name, value, x)
    if history is not None:
        if history.ndim != x.ndim + 1 or not 1 <= history.shape[0] <= 3:
            raise ValueError(f"history must be [1 to 3, *x.shape] (from new_history), got {list(history.shape)}")
        _check_slot("history", history[0], x)
    arguments = (
        x,
        model_output,
        rows,
        row_tensor,
        noise,
        ids,
        _signed(seed),
        learned_variance,
        base,
        history,
        pred_out,
        out,
    )
    _dispatch("step", x, implementation, arguments)
    return out


def _describe(x: Tensor) -> str:
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def _dtype_name(x: Tensor) -> str:
    return str(reference.compute_dtype(x))


def _check_model_output(x: Tensor, model_output: Tensor, learned_variance: bool) -> None:
    channels = x.shape[1]
    allowed = (2 * channels,) if learned_variance else (channels, 2 * channels)
    fits = model_output.ndim == x.ndim and model_output.shape[0] == x.shape[0] and model_output.shape[2:] == x.shape[2:]
    if not fits or model_output.shape[1] not in allowed:
        expected = " or ".join(str([x.shape[0], c, *x.shape[2:]]) for c in allowed)
        raise ValueError(f"the model's output must have shape {expected}, got {list(model_output.shape)}")
    if model_output.dtype not in FLOAT_DTYPES:
        raise ValueError(f"the model's output must be floating point, got {model_output.dtype}")
    if model_output.device != x.device:
        raise ValueError(f"the model's output is on {model_output.device}, the state on {x.device}")


def _check_slot(name: str, value: Tensor, x: Tensor) -> None:
    if value.shape != x.shape or value.dtype != x.dtype or value.device != x.device:
        raise ValueError(f"{name} must be {_describe(x)}, as the state, got {_describe(value)}")
    layout = memory_format(x)
    if not value.is_contiguous(memory_format=layout):
        raise ValueError(f"{name} must have the state's memory format ({layout}), got strides {value.stride()}")


def _noise_arguments(
    x: Tensor, noise: Tensor | None, sample_ids: Tensor | None, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    if noise is not None and (noise.shape != x.shape or noise.dtype not in FLOAT_DTYPES or noise.device != x.device):
        raise ValueError(f"noise must be floating point {list(x.shape)} on {x.device}, got {_describe(noise)}")
    batch = x.shape[0]
    if sample_ids is None:
        sample_ids = _counting(batch, x.device)
    elif sample_ids.shape != (batch,) or sample_ids.dtype != torch.int64 or sample_ids.device != x.device:
        raise ValueError(f"sample_ids must be int64 [{batch}] on {x.device}, got {_describe(sample_ids)}")
    if isinstance(row, Tensor):
        if row.dtype != torch.int64 or row.ndim != 1 or row.shape[0] not in (1, batch) or row.device != x.device:
            raise ValueError(f"row must be int64 [1] or [{batch}] on {x.device}, got {_describe(row)}")
        return sample_ids, row
    if not 0 <= row < MAX_ROW:
        raise ValueError(f"row must be in [0, 2^28), got {row}")
    return sample_ids, _one_number(int(row), x.device)


def _counting(count: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        return torch.arange(count, dtype=torch.int64, device=device)
    return _cached_counting(device, max(4096, 1 << (count - 1).bit_length()))[:count]


def _one_number(number: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling() or number >= 4096:
        return torch.full((1,), number, dtype=torch.int64, device=device)
    return _cached_counting(device, 4096)[number : number + 1]


@functools.lru_cache(maxsize=16)
def _cached_counting(device: torch.device, length: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.int64, device=device)


def _signed(seed: int) -> int:
    """The seed's 64 bits as the signed number that a schema's int holds."""
    seed = check_seed(seed)
    return seed - (1 << 64) if seed >= 1 << 63 else seed


def _dispatch(name: str, x: Tensor, implementation: Implementation, arguments: tuple[Any, ...]) -> Any:
    if implementation == "auto":
        return _call(name, arguments)
    if implementation == "reference":
        return _REFERENCES[name](*arguments)
    if implementation == "cpu":
        if EXTENSION_ERROR is not None:
            raise RuntimeError(
                f"the C++ extension is not available ({EXTENSION_ERROR}): build it with `{BUILD_COMMAND}`"
            )
        if x.device.type != "cpu":
            raise RuntimeError(f"implementation 'cpu' was asked for tensors on {x.device}")
        return _call(name, arguments)
    if implementation == "triton":
        launch = _launcher(name)
        # On a GPU through the dispatcher, for autograd's sake; elsewhere there is Triton's interpreter.
        return launch(*arguments) if x.device.type != "cuda" or x.dtype == torch.float64 else _call(name, arguments)
    raise ValueError(f"implementation must be 'auto', 'reference', 'cpu' or 'triton', got {implementation!r}")


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return getattr(torch.ops.fastdiff, name)(*arguments)
    except RuntimeError:
        # The C++ kernel checks its indices; here they get Python's own error.
        _check_indices(name, arguments)
        raise


def _launcher(name: str) -> Any:
    try:
        module = importlib.import_module(f"fastdiff.kernels.{name}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError('Triton is not installed: pip install "fastdiff-ddpm[triton]"') from None
    return getattr(module, f"launch_{name}")


@functools.cache
def _warn_slow(why: str) -> None:
    warnings.warn(f"fastdiff runs its slow reference implementation: {why}", RuntimeWarning, stacklevel=3)


def _diffuse_reference(
    x0: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    sample_ids: Tensor,
    row: Tensor,
    seed: int,
    stream: int,
    levels: int,
    dtype: torch.dtype,
    want_target: bool,
) -> tuple[Tensor, Tensor]:
    _check_index("t", t, table.shape[0])
    _check_index("row", row, MAX_ROW)
    x_t, target = reference.diffuse(x0, t, table, noise, sample_ids, row, seed & (1 << 64) - 1, stream, levels)
    layout = memory_format(x0)
    x_t = x_t.to(dtype).contiguous(memory_format=layout)
    target = target.to(dtype).contiguous(memory_format=layout) if want_target else x_t.new_empty(0)
    return x_t, target


def _step_reference(
    x: Tensor,
    model_output: Tensor | None,
    rows: Tensor,
    row: Tensor,
    noise: Tensor | None,
    sample_ids: Tensor,
    seed: int,
    learned_variance: bool,
    base: Tensor | None,
    history: Tensor | None,
    pred_out: Tensor | None,
    out: Tensor,
) -> None:
    _check_index("row", row, rows.shape[0])
    x_next, pred, base_next, history_next = reference.step(
        x, model_output, rows, row, noise, sample_ids, seed & (1 << 64) - 1, learned_variance, base, history
    )
    for slot, value in ((out, x_next), (pred_out, pred), (base, base_next), (history, history_next)):
        if slot is not None and value is not None:
            slot.copy_(value)


def _check_indices(name: str, arguments: tuple[Any, ...]) -> None:
    if name == "diffuse":
        _check_index("t", arguments[1], arguments[2].shape[0])
        _check_index("row", arguments[5], MAX_ROW)
    else:
        _check_index("row", arguments[3], arguments[2].shape[0])


def _check_index(name: str, index: Tensor, length: int) -> None:
    if index.device.type == "cpu" and index.numel() and (int(index.min()) < 0 or int(index.max()) >= length):
        bad = index[(index < 0) | (index >= length)]
        raise IndexError(f"{name} must be in [0, {length}), got {int(bad[0])}")


_REFERENCES: dict[str, Any] = {"diffuse": _diffuse_reference, "step": _step_reference}


def _register(name: str) -> None:
    run_reference = _REFERENCES[name]

    def composite(*arguments: Any) -> Any:
        if arguments[0].device.type == "cpu" and EXTENSION_ERROR is not None:
            _warn_slow(f"the C++ extension is not built; build it with `{BUILD_COMMAND}`")
        return run_reference(*arguments)

    def cuda(*arguments: Any) -> Any:
        if arguments[0].dtype == torch.float64:
            return run_reference(*arguments)
        try:
            launch = _launcher(name)
        except RuntimeError as error:
            _warn_slow(str(error))
            return run_reference(*arguments)
        return launch(*arguments)

    _library.impl(name, composite, "CompositeExplicitAutograd")
    _library.impl(name, cuda, "CUDA")


for _name in _REFERENCES:
    _register(_name)


def _diffuse_fake(
    x0: Tensor,
    t: Tensor,
    table: Tensor,
    noise: Tensor | None,
    sample_ids: Tensor,
    row: Tensor,
    seed: int,
    stream: int,
    levels: int,
    dtype: torch.dtype,
    want_target: bool,
) -> tuple[Tensor, Tensor]:
    x_t = torch.empty_like(x0, dtype=dtype, memory_format=memory_format(x0))
    return x_t, torch.empty_like(x_t) if want_target else x_t.new_empty(0)


def _step_fake(*arguments: Any) -> None:
    return None


def _diffuse_setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x0, t, table, noise = inputs[:4]
    ctx.save_for_backward(t, table)
    ctx.image_dtype, ctx.noise_dtype = x0.dtype, None if noise is None else noise.dtype
    ctx.want_target = inputs[-1]


def _diffuse_backward(ctx: Any, grad_x_t: Tensor, grad_target: Tensor) -> tuple[Tensor | None, ...]:
    """Both results are linear in x_0 and z, so the gradients are the coefficients times those of the results."""
    t, table = ctx.saved_tensors

    def back(first: int, second: int, dtype: torch.dtype) -> Tensor:
        def c(i: int) -> Tensor:
            return reference.per_sample(table[t, i], grad_x_t)

        grad = c(first) * grad_x_t.to(table.dtype)
        if ctx.want_target:
            grad = grad + c(second) * grad_target.to(table.dtype)
        return grad.to(dtype)

    grad_x0 = back(0, 2, ctx.image_dtype) if ctx.image_dtype != torch.uint8 and ctx.needs_input_grad[0] else None
    grad_noise = back(1, 3, ctx.noise_dtype) if ctx.needs_input_grad[3] else None
    return grad_x0, None, None, grad_noise, *[None] * 7


torch.library.register_fake("fastdiff::diffuse", _diffuse_fake)
torch.library.register_fake("fastdiff::step", _step_fake)
torch.library.register_autograd("fastdiff::diffuse", _diffuse_backward, setup_context=_diffuse_setup)
