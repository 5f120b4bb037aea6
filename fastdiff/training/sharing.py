"""A step's update, shared out among processes of one machine: each keeps a part of the parameters up to date.

A process sums the gradients of its own parameters over all processes, takes AdamW's step on them and averages them;
then everybody takes over the others' weights. Gradients and weights go through memory that all processes see, at the
speed of a copy. The sums have one order, and the norm is that of the whole gradient.

Source: Rajbhandari et al. (2020), arXiv:1910.02054, section 5 (the stages that partition the optimizer's state and the
gradients).
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from fastdiff.training.replicas import is_replicated
from fastdiff.training.update import gradient_norms
from fastdiff.training.world import World

__all__ = ["Sharing", "shared_memory", "sharing"]


def sharing(network: nn.Module, world: World) -> Sharing | None:
    """How the processes share out the update of a network, which they have with the same weights.

    Args:
        network: On its device, perhaps under `torch.compile`.
        world: The processes.

    Returns:
        None where there is one process, a GPU, parameters that are not float32, a network under
        `DistributedDataParallel`, or no memory that all of the processes see.
    """
    parameters = list(network.parameters())
    fits = all(parameter.device.type == "cpu" and parameter.dtype == torch.float32 for parameter in parameters)
    if world.size == 1 or not fits or is_replicated(network):
        return None
    memory = shared_memory(world, world.size * sum(parameter.numel() for parameter in parameters))
    return None if memory is None else Sharing(parameters, world, memory)


class Sharing:
    """The part of one process.

    In a step, all processes call `send`, meet, and call `norm` and, after the update, `spread`.

    Args:
        parameters: Of the network, in one order at all processes.
        world: The processes.
        memory: float32 [size * values of all parameters], the same at all processes.

    Attributes:
        own: The places of this process's parameters, ascending.
        is_partial: Whether what `gather` gathers is up to date at its owner alone.
    """

    def __init__(self, parameters: list[nn.Parameter], world: World, memory: Tensor) -> None:
        self._world = world
        self._parameters = parameters
        self._owners = _shared_out([parameter.numel() for parameter in parameters], world.size)
        self.own = [place for place, owner in enumerate(self._owners) if owner == world.rank]
        self.is_partial = False
        total = sum(parameter.numel() for parameter in parameters)
        self._room, messages = memory[:total], memory[total:]
        self._starts: list[int] = []
        self._sent: dict[int, Tensor] = {}
        # Of each of its own parameters, one of every other process.
        self._received: dict[int, list[Tensor]] = {}
        start = 0
        for place, (parameter, owner) in enumerate(zip(parameters, self._owners, strict=True)):
            self._starts.append(start)
            num = parameter.numel()
            slots = messages[(world.size - 1) * start :].split(num)[: world.size - 1]
            views = [_like(parameter, slot) for slot in slots]
            if owner == world.rank:
                self._received[place] = views
            else:
                self._sent[place] = views[world.rank - (world.rank > owner)]
            start += num
        self._weights = self._views(parameters)

    def send(self) -> None:
        """Hand the gradients of the others' parameters over to them; they are gone here."""
        given = [(view, self._parameters[place]) for place, view in self._sent.items()]
        found = [(view, parameter.grad) for view, parameter in given if parameter.grad is not None]
        torch._foreach_copy_([view for view, _ in found], [gradient for _, gradient in found])
        for _, parameter in given:
            parameter.grad = None

    def norm(self) -> Tensor:
        """Sum the gradients of the own parameters over the processes; all processes have sent theirs.

        Returns:
            The norm of the whole gradient, the same at all processes, a float32 scalar.
        """
        kept = [(place, g) for place in self.own if (g := self._parameters[place].grad) is not None]
        gradients = [gradient for _, gradient in kept]
        norms = torch.zeros(len(self._parameters))
        if kept:
            for other in range(self._world.size - 1):
                torch._foreach_add_(gradients, [self._received[place][other] for place, _ in kept])
            norms[[place for place, _ in kept]] = gradient_norms(gradients)
        norm: Tensor = torch.linalg.vector_norm(self._world.total(norms))
        return norm

    @torch.no_grad()
    def spread(self) -> None:
        """Give the own weights to the others and take theirs."""
        self._exchange([parameter.detach() for parameter in self._parameters], self._weights)
        self.is_partial = True

    @torch.no_grad()
    def gather(self, kinds: Iterable[Sequence[Tensor]]) -> None:
        """Bring everything that goes with the parameters up to date at all processes.

        Args:
            kinds: Of each kind a float32 tensor for each parameter, of as many values at the most.
        """
        if not self.is_partial:
            return
        for tensors in kinds:
            # The room is free: what was in it before has been taken.
            self._world.meet()
            self._exchange(tensors, self._views(tensors))
        # Before a process writes to it again.
        self._world.meet()
        self.is_partial = False

    def _exchange(self, tensors: Sequence[Tensor], views: Sequence[Tensor]) -> None:
        """Put the own ones of some tensors into the room, and take the others'."""
        own, others = set(self.own), [place for place in range(len(tensors)) if self._owners[place] != self._world.rank]
        torch._foreach_copy_([views[place] for place in own], [tensors[place] for place in own])
        self._world.meet()
        torch._foreach_copy_([tensors[place] for place in others], [views[place] for place in others])

    def _views(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The room of each tensor."""
        return [_like(tensor, self._room[start:]) for tensor, start in zip(tensors, self._starts, strict=True)]


def shared_memory(world: World, num: int) -> Tensor | None:
    """Memory of the processes of one machine, zeros, float32 [num]; None where not all of them can have it.

    It is a file without a name, which goes with the last process however that ends.
    """
    # Which process and file it is, by numbers that mean the same to processes of one machine (and container) alone.
    name = f"fastdiff-{secrets.token_hex(16)}"
    made: list[int] = []

    def make() -> tuple[str, str] | None:
        if not hasattr(os, "memfd_create"):
            return None
        try:
            made.append(os.memfd_create(name))
            os.posix_fallocate(made[0], 0, 4 * num)
        except OSError:
            return None
        return f"/proc/{os.getpid()}/fd/{made[0]}", f"/memfd:{name} (deleted)"

    try:
        found = world.first(make)
        memory = None if found is None else _opened(*found, 4 * num)
        return memory if world.total(torch.tensor([float(memory is not None)])).item() == world.size else None
    finally:
        for file in made:
            os.close(file)


def _opened(path: str, expected: str, num_bytes: int) -> Tensor | None:
    try:
        if os.readlink(path) != expected:
            return None
        file = os.open(path, os.O_RDWR)
    except OSError:
        return None
    try:
        return torch.frombuffer(mmap.mmap(file, num_bytes), dtype=torch.float32)
    except OSError:
        return None
    finally:
        os.close(file)


def _shared_out(sizes: Sequence[int], num: int) -> list[int]:
    """Who of `num` has each of some things, so that all have about as much: the largest first, to who has least."""
    loads = [0] * num
    owners = [0] * len(sizes)
    for place in sorted(range(len(sizes)), key=lambda place: -sizes[place]):
        owners[place] = loads.index(min(loads))
        loads[owners[place]] += sizes[place]
    return owners


def _like(tensor: Tensor, memory: Tensor) -> Tensor:
    """The beginning of some memory as a tensor that lies as another one does."""
    strides = torch.empty_like(tensor, device="meta").stride()
    return memory.as_strided(tensor.shape, strides)
