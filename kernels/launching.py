"""What all launchers share: whole numbers, tensors as kernels read them, and the short way to a compiled kernel."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

# Triton looks at every argument of a launch to find out what was compiled for it, which takes longer than most of these
# kernels run. Where a launcher knows that nothing which decides this has changed, what was found is kept by a key: the
# compiled kernel with its grid, and its last arguments. This also holds the kernels: Triton unloads those that
# nobody has, at a time of its own, and that may be in the middle of a capture.
Launches = dict[Hashable, tuple[Callable[..., object], tuple[Any, ...]]]
# Grid; numbers that follow from the key; compile-time arguments and launch options.
Description = tuple[int, tuple[int, ...], dict[str, Any]]


def cdiv(a: int, b: int) -> int:
    """a / b, rounded up; Triton's own is one for kernels too and takes 1.4 us on the host."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n, for n > 0."""
    return 1 << (n - 1).bit_length()


def is_power_of_2(n: int) -> bool:
    """Whether n, above 0, is one."""
    return n & (n - 1) == 0


def dense(x: Tensor, layout: torch.memory_format = torch.contiguous_format) -> Tensor:
    """x in a layout and at an address that is a multiple of 16 bytes: itself, or a copy.

    At other addresses the compiler chooses other accesses, and with them maybe another order of summation.
    """
    x = x.contiguous(memory_format=layout)
    return x if x.data_ptr() % 16 == 0 else x.clone()


def are_aligned(*tensors: Tensor | None) -> bool:
    """Whether all that are given start at a multiple of 16 bytes."""
    return all(x is None or x.data_ptr() % 16 == 0 for x in tensors)


def launch(
    kernel: Any,
    launches: Launches,
    key: Hashable,
    tensors: tuple[Tensor | None, ...],
    numbers: tuple[int, ...],
    describe: Callable[[], Description],
) -> None:
    """Launch a kernel on its device, which is the current one.

    Args:
        kernel: Of Triton; its parameters are tensors, numbers, those of the description, and compile-time arguments.
        launches: What was launched before.
        key: What decides all but addresses, all of which are multiples of 16 bytes, and `numbers`; None where some
            address may be none.
        tensors: Its pointers.
        numbers: What may change from call to call; the kernel does not specialise them.
        describe: The rest, asked for once per key.
    """
    found = None if key is None else launches.get(key)
    if found is not None:
        run, last = found
        run(*tensors, *numbers, *last)
        return
    grid, fixed, constants = describe()
    compiled = kernel[(grid,)](*tensors, *numbers, *fixed, **constants)
    # The interpreter compiles nothing.
    if key is not None and compiled is not None:
        last = (*fixed, *(constants[parameter.name] for parameter in kernel.params if parameter.is_constexpr))
        launches[key] = compiled[grid, 1, 1], last
