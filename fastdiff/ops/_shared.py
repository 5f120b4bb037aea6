"""What the ops share: the library, dispatch between implementations, layouts, checks of arguments.

Each op is `torch.ops.fastdiff.NAME` with the reference under CompositeExplicitAutograd, C++ under CPU (when the
extension is built) and the Triton launcher under CUDA (imported on first use).
"""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fastdiff import reference
from fastdiff.noise import MAX_ROW, check_seed

Implementation = Literal["auto", "reference", "cpu", "triton"]
FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
BUILD_COMMAND = "pip install --no-build-isolation -e ."

try:
    importlib.import_module("fastdiff._C")
    EXTENSION_ERROR: ImportError | None = None
except ImportError as error:
    EXTENSION_ERROR = error

LIBRARY = torch.library.Library("fastdiff", "DEF")
_REFERENCES: dict[str, Callable[..., Any]] = {}
_KERNELS: dict[str, str] = {}
_INDEX_CHECKS: dict[str, Callable[[tuple[Any, ...]], None]] = {}


def has_extension() -> bool:
    """Whether the C++ extension is loaded."""
    return EXTENSION_ERROR is None


def is_unwatched() -> bool:
    """Whether nothing looks at the ops that run: no mode, transform, tracer or compiler."""
    return (
        # First: the compiler cannot look at the others.
        not torch.compiler.is_compiling()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch._C._get_tracing_state() is None
    )


def memory_format(x: Tensor) -> torch.memory_format:
    """The layout that an op keeps for x: channels_last where x is [B, C, H, W] in that layout, else contiguous."""
    if x.ndim == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def define(
    name: str,
    schema: str,
    run_reference: Callable[..., Any],
    fake: Callable[..., Any],
    check_indices: Callable[[tuple[Any, ...]], None] | None = None,
    *,
    kernel: str | None = None,
) -> None:
    """Make `torch.ops.fastdiff.<name>` of a schema, its reference and its fake.

    Args:
        name: Of the op, whose launcher is `launch_<name>`.
        schema: Arguments and results, without the name.
        run_reference: The implementation that is right, with the schema's arguments.
        fake: Results without values.
        check_indices: Raises IndexError for indices out of range, when the C++ kernel has refused its arguments.
        kernel: The module in `fastdiff.kernels` that has the launcher; the op's own name when None.
    """
    LIBRARY.define(name + schema)
    _REFERENCES[name] = run_reference
    _KERNELS[name] = kernel or name
    if check_indices is not None:
        _INDEX_CHECKS[name] = check_indices

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

    LIBRARY.impl(name, composite, "CompositeExplicitAutograd")
    LIBRARY.impl(name, cuda, "CUDA")
    torch.library.register_fake(f"fastdiff::{name}", fake)


def dispatch(name: str, x: Tensor, implementation: Implementation, arguments: tuple[Any, ...]) -> Any:
    """Call an op by device, or the implementation of it that was asked for.

    Raises:
        RuntimeError: the implementation is not available.
    """
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
        if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{name}", "CPU"):
            raise RuntimeError(f"{name} has no C++ kernel: leave implementation at 'auto' or name 'reference'")
        return _call(name, arguments)
    if implementation == "triton":
        launch = _launcher(name)
        if x.device.type == "cuda":
            # Through the dispatcher, for autograd's sake; the launcher itself says that it takes no float64.
            return launch(*arguments) if x.dtype == torch.float64 else _call(name, arguments)
        _check_interpreter(name, x, arguments)
        return launch(*arguments)
    raise ValueError(f"implementation must be 'auto', 'reference', 'cpu' or 'triton', got {implementation!r}")


def _check_interpreter(name: str, x: Tensor, arguments: tuple[Any, ...]) -> None:
    """Off a GPU there is only Triton's interpreter, and no autograd: say so where it would be missed."""
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"implementation 'triton' was asked for tensors on {x.device}: move them to a GPU, or set "
            "TRITON_INTERPRET=1 before Triton is imported to run the kernels slowly under its interpreter"
        )
    if torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments):
        raise RuntimeError(
            f"{name} has no gradient under Triton's interpreter: detach its inputs, call it under torch.no_grad(), or "
            "leave implementation at 'auto'"
        )


def _call(name: str, arguments: tuple[Any, ...]) -> Any:
    try:
        return _overload(name)(*arguments)
    except RuntimeError:
        # The C++ kernel checks its indices; here they get Python's own error.
        if name in _INDEX_CHECKS:
            _INDEX_CHECKS[name](arguments)
        raise


@functools.cache
def _overload(name: str) -> Any:
    # Calling the packet instead would look for the overload each time, which takes as long as a small kernel.
    return getattr(torch.ops.fastdiff, name).default


def _launcher(name: str) -> Any:
    try:
        module = importlib.import_module(f"fastdiff.kernels.{_KERNELS[name]}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError('Triton is not installed: pip install "fastdiff-ddpm[triton]"') from None
    return getattr(module, f"launch_{name}")


@functools.cache
def _warn_slow(why: str) -> None:
    warnings.warn(f"fastdiff runs its slow reference implementation: {why}", RuntimeWarning, stacklevel=3)


def check_index(name: str, index: Tensor, length: int) -> None:
    """Raise IndexError for an index outside [0, length), on the CPU only."""
    if index.device.type == "cpu" and index.numel() and (int(index.min()) < 0 or int(index.max()) >= length):
        bad = index[(index < 0) | (index >= length)]
        raise IndexError(f"{name} must be in [0, {length}), got {int(bad[0])}")


def describe(x: Tensor) -> str:
    """Dtype, shape and device, for errors."""
    return f"{x.dtype} {list(x.shape)} on {x.device}"


def dtype_name(x: Tensor) -> str:
    """Name of the dtype of tables and arithmetic for x, for errors."""
    return str(reference.compute_dtype(x))


def noise_arguments(
    x: Tensor, noise: Tensor | None, sample_ids: Tensor | None, row: int | Tensor
) -> tuple[Tensor, Tensor]:
    """Sample ids int64 [B] and rows int64 [1 or B] on x's device. Raises ValueError for what does not fit."""
    if noise is not None and (noise.shape != x.shape or noise.dtype not in FLOAT_DTYPES or noise.device != x.device):
        raise ValueError(f"noise must be floating point {list(x.shape)} on {x.device}, got {describe(noise)}")
    batch = x.shape[0]
    if sample_ids is None:
        sample_ids = _counting(batch, x.device)
    elif sample_ids.shape != (batch,) or sample_ids.dtype != torch.int64 or sample_ids.device != x.device:
        raise ValueError(f"sample_ids must be int64 [{batch}] on {x.device}, got {describe(sample_ids)}")
    if isinstance(row, Tensor):
        if row.dtype != torch.int64 or row.ndim != 1 or row.shape[0] not in (1, batch) or row.device != x.device:
            raise ValueError(f"row must be int64 [1] or [{batch}] on {x.device}, got {describe(row)}")
        return sample_ids, row
    if not 0 <= row < MAX_ROW:
        raise ValueError(f"row must be in [0, 2^28), got {row}")
    return sample_ids, _one_number(int(row), x.device)


def _counting(count: int, device: torch.device) -> Tensor:
    # What is made under a mode may not be a tensor of numbers, and must not be kept.
    if not is_unwatched():
        return torch.arange(count, dtype=torch.int64, device=device)
    return _cached_part(device, 0, count)


def _one_number(number: int, device: torch.device) -> Tensor:
    if number >= 4096 or not is_unwatched():
        return torch.full((1,), number, dtype=torch.int64, device=device)
    return _cached_part(device, number, number + 1)


@functools.lru_cache(maxsize=4096)
def _cached_part(device: torch.device, first: int, end: int) -> Tensor:
    with torch.inference_mode(False):
        return _cached_counting(device, max(4096, 1 << (end - 1).bit_length()))[first:end]


@functools.lru_cache(maxsize=16)
def _cached_counting(device: torch.device, length: int) -> Tensor:
    with torch.inference_mode(False):
        return torch.arange(length, dtype=torch.int64, device=device)


def signed(seed: int) -> int:
    """The seed's 64 bits as the signed number that a schema's int holds."""
    seed = check_seed(seed)
    return seed - (1 << 64) if seed >= 1 << 63 else seed
