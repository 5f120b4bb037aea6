"""The library of ops, and the choice between an op's implementations.

Each op is `torch.ops.fastdiff.NAME` with the reference under CompositeExplicitAutograd, C++ under CPU (when the
extension is built) and the Triton launcher under CUDA (imported on first use). In Python its arguments are one value of
`fastdiff.calls`, which `dispatch` takes and all implementations but those in C++ are given.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NamedTuple, TypeVar, get_type_hints

import torch
from torch import Tensor
from torch.autograd import forward_ad

from fastdiff.ops._arguments import is_unwatched
from fastdiff.ops._schema import schema

Implementation = Literal["auto", "reference", "cpu", "triton"]
# In a checkout, or from the source distribution.
BUILD_COMMAND = "pip install --no-build-isolation --force-reinstall --no-deps " + (
    "-e ." if (Path(__file__).parents[2] / "setup.py").exists() else "--no-binary fastdiff-ddpm fastdiff-ddpm"
)

try:
    importlib.import_module("fastdiff._C")
    EXTENSION_ERROR: ImportError | None = None
except ImportError as error:
    EXTENSION_ERROR = error

LIBRARY = torch.library.Library("fastdiff", "DEF")
CallT = TypeVar("CallT", bound=NamedTuple)
ResultT = TypeVar("ResultT")


@dataclass(slots=True)
class _Op:
    """One op: `overload` is what the dispatcher calls; the rest as in `define`, and what is found on first use.

    Attributes:
        cpu: What runs on the CPU, where that is in Python and the extension is built.
        launch: The launcher, once it was imported.
        function: The op with its gradient as autograd takes it from Python, where it has one.
    """

    name: str
    overload: Any
    reference: Callable[[Any], Any]
    check_indices: Callable[[Any], None] | None
    kernel: str | None
    cpu: Callable[[Any], Any] | None = None
    launch: Callable[[Any], Any] | None = None
    function: type[torch.autograd.Function] | None = None


_OPS: dict[type, _Op] = {}
# What a call's arguments are besides tensors; all else goes through the dispatcher.
_PLAIN = frozenset({NoneType, int, float, bool, str, torch.dtype})


def has_extension() -> bool:
    """Whether the C++ extension is loaded."""
    return EXTENSION_ERROR is None


def define(
    name: str,
    call: type[CallT],
    reference: Callable[[CallT], ResultT],
    fake: Callable[[CallT], ResultT],
    *,
    cpu: Callable[[CallT], ResultT] | None = None,
    check_indices: Callable[[CallT], None] | None = None,
    kernel: str | None = None,
) -> None:
    """Make `torch.ops.fastdiff.<name>`; its schema follows from the types of the call and of the reference's results.

    Args:
        name: Of the op, whose launcher is `launch_<name>`.
        call: The op's arguments.
        reference: The implementation that is right.
        fake: Results without values.
        cpu: What runs on the CPU when the extension is built, where C++ has not registered the op itself.
        check_indices: Raises IndexError for indices out of range, when the C++ kernel has refused its arguments.
        kernel: The module in `fastdiff.kernels` that has the launcher; a GPU runs the reference when None.
    """
    LIBRARY.define(name + schema(call, get_type_hints(reference)["return"]))
    # Calling the packet instead would look for the overload each time, which takes as long as a small kernel.
    overload = getattr(torch.ops.fastdiff, name).default
    op = _OPS[call] = _Op(name, overload, reference, check_indices, kernel)

    def composite(*arguments: Any) -> ResultT:
        if arguments[0].device.type == "cpu" and EXTENSION_ERROR is not None:
            _warn_slow(f"the C++ extension is not built; build it with `{BUILD_COMMAND}`")
        return reference(call._make(arguments))

    def cuda(*arguments: Any) -> Any:
        if arguments[0].dtype == torch.float64:
            return reference(call._make(arguments))
        try:
            launch = _launcher(op)
        except RuntimeError as error:
            _warn_slow(str(error))
            return reference(call._make(arguments))
        return launch(call._make(arguments))

    LIBRARY.impl(name, composite, "CompositeExplicitAutograd")
    if kernel is not None:
        LIBRARY.impl(name, cuda, "CUDA")
    if cpu is not None and has_extension():
        op.cpu = cpu
        LIBRARY.impl(name, lambda *arguments: cpu(call._make(arguments)), "CPU")
    torch.library.register_fake(f"fastdiff::{name}", lambda *arguments: fake(call._make(arguments)))


def dispatch(call: NamedTuple, implementation: Implementation = "auto") -> Any:
    """Run the op of a call by device, or the implementation of it that was asked for.

    Raises:
        RuntimeError: the implementation is not available.
    """
    op = _OPS[type(call)]
    if op.cpu is not None and implementation in ("auto", "cpu") and on_cpu(call[0]):
        way = _way_past(op, call)
        if way == "launch":
            return op.cpu(call)
        if way == "function" and op.function is not None:
            return op.function.apply(*call)
    if implementation in ("auto", "triton") and on_gpu(call[0]) and call[0].dtype != torch.float64:
        way = _way_past(op, call)
        if way == "launch" and op.launch is not None:
            return op.launch(call)
        if way == "function" and op.function is not None:
            return op.function.apply(*call)
    if implementation != "auto":
        if implementation == "reference":
            return op.reference(call)
        if implementation == "cpu":
            _check_cpu(op, call[0])
        elif implementation == "triton":
            launch = _launcher(op)
            if call[0].device.type != "cuda":
                _check_interpreter(op, call)
                return launch(call)
            # The launcher itself says that it takes no float64. All else goes on, for autograd's sake.
            if call[0].dtype == torch.float64:
                return launch(call)
        else:
            raise ValueError(f"implementation must be 'auto', 'reference', 'cpu' or 'triton', got {implementation!r}")
    try:
        return op.overload(*call)
    except RuntimeError:
        # The C++ kernel checks its indices; here they get Python's own error.
        if op.check_indices is not None:
            op.check_indices(call)
        raise


def differentiate(call: type[NamedTuple], backward: Callable[..., Any], setup: Callable[..., None]) -> None:
    """Give the op of a call its gradient, as `torch.library.register_autograd` does.

    What that makes is for compilers and everybody else who looks on. It takes 0.4 ms for a call with many arguments,
    so where nobody does eager calls go through a function of their own, with the same two halves.
    """
    op = _OPS[call]
    torch.library.register_autograd(f"fastdiff::{op.name}", backward, setup_context=setup)

    def forward(ctx: Any, *arguments: Any) -> Any:
        run = op.cpu if on_cpu(arguments[0]) else op.launch
        assert run is not None
        result = run(call._make(arguments))
        setup(ctx, arguments, result)
        return result

    members = {"forward": staticmethod(forward), "backward": staticmethod(backward)}
    op.function = type(f"fastdiff_{op.name}", (torch.autograd.Function,), members)


@functools.cache
def has_triton() -> bool:
    """Whether Triton is installed."""
    return importlib.util.find_spec("triton") is not None


def on_cpu(x: Tensor) -> bool:
    """Whether a tensor is the CPU's."""
    return x.is_cpu


def on_gpu(x: Tensor) -> bool:
    """Whether x is where the Triton kernels run."""
    return x.is_cuda


def _way_past(op: _Op, call: NamedTuple) -> Literal["launch", "function"] | None:
    """How a call goes past the dispatcher, where it may: with plain tensors of one device, where nobody looks on."""
    is_cpu = on_cpu(call[0])
    if (op.kernel is None and not is_cpu) or not is_unwatched():
        return None
    if torch._C._autograd._profiler_enabled() or forward_ad._current_level >= 0:
        return None
    is_enabled, wants_gradient = torch.is_grad_enabled(), False
    for value in call:
        if isinstance(value, Tensor):
            kind = type(value)
            if (kind is not Tensor and kind is not torch.nn.Parameter) or value.is_neg():
                return None
            if is_cpu and not value.is_cpu:
                return None
            wants_gradient = wants_gradient or (is_enabled and value.requires_grad)
        elif type(value) not in _PLAIN:
            return None
    if op.launch is None and not is_cpu:
        try:
            op.launch = _launcher(op)
        except RuntimeError:
            # The dispatcher's way says so.
            return None
    if not wants_gradient:
        return "launch"
    # Without a function the op is a gradient itself, and says on its way back that it has none.
    return None if op.function is None else "function"


def _wants_gradient(call: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in call)


def _check_cpu(op: _Op, x: Tensor) -> None:
    if EXTENSION_ERROR is not None:
        raise RuntimeError(f"the C++ extension is not available ({EXTENSION_ERROR}): build it with `{BUILD_COMMAND}`")
    if x.device.type != "cpu":
        raise RuntimeError(f"implementation 'cpu' was asked for tensors on {x.device}")
    if not torch._C._dispatch_has_kernel_for_dispatch_key(f"fastdiff::{op.name}", "CPU"):
        raise RuntimeError(f"{op.name} has no C++ kernel: leave implementation at 'auto' or name 'reference'")


def _check_interpreter(op: _Op, call: tuple[Any, ...]) -> None:
    """Off a GPU there is only Triton's interpreter, and no autograd: say so where it would be missed."""
    import triton

    if not triton.knobs.runtime.interpret:
        raise RuntimeError(
            f"implementation 'triton' was asked for tensors on {call[0].device}: move them to a GPU, or set "
            "TRITON_INTERPRET=1 before Triton is imported to run the kernels slowly under its interpreter"
        )
    if _wants_gradient(call):
        raise RuntimeError(
            f"{op.name} has no gradient under Triton's interpreter: detach its inputs, call it under torch.no_grad(), "
            "or leave implementation at 'auto'"
        )


def _launcher(op: _Op) -> Any:
    if op.kernel is None:
        raise RuntimeError(f"{op.name} has no Triton kernel: leave implementation at 'auto' or name 'reference'")
    try:
        module = importlib.import_module(f"fastdiff.kernels.{op.kernel}")
    except ModuleNotFoundError as error:
        if error.name != "triton":
            raise
        raise RuntimeError('Triton is not installed: pip install "fastdiff-ddpm[triton]"') from None
    return getattr(module, f"launch_{op.name}")


def wanted_gradients(call: type[NamedTuple], ctx: Any) -> set[str]:
    """The arguments of a call whose gradients are asked for."""
    return {name for name, is_wanted in zip(call._fields, ctx.needs_input_grad, strict=True) if is_wanted}


def gradients(call: type[NamedTuple], **found: Tensor | None) -> tuple[Tensor | None, ...]:
    """The gradients of a call's arguments in their order, None for those that are not named."""
    assert found.keys() <= set(call._fields)
    return tuple(map(found.get, call._fields))


def refuse_second_derivative(name: str, subject: str) -> None:
    """Let an op, which is a gradient, raise where it would be differentiated itself; `subject` begins the sentence."""

    def refuse(ctx: Any, *grads: Any) -> Any:
        raise RuntimeError(f"{subject} no second derivative: take the first without create_graph")

    torch.library.register_autograd(f"fastdiff::{name}", refuse)


@functools.cache
def _warn_slow(why: str) -> None:
    warnings.warn(f"fastdiff runs its slow reference implementation: {why}", RuntimeWarning, stacklevel=3)
