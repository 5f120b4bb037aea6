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

Implementation = Literal["auto", "reference", "cpu", "triton"]
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
