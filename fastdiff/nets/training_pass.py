"""A `UNet` in training on the CPU as one function of autograd: its passes are a call each of C++ over a plan.

What no plan computes, or somebody looks into, runs module by module. Activations lie in one arena, which later steps
use again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from fastdiff import ops
from fastdiff.nets.blocks import (
    AttentionBlock,
    Block,
    Conv1x1,
    Conv3x3,
    Downsample,
    Dropout,
    GroupNormAct,
    Linear,
    ResBlock,
    SiLU,
    Upsample,
    timestep_embedding,
)
from fastdiff.nets.training_lowering import lower_training, planned_parameters
from fastdiff.nets.training_plan import TrainingPlan, Unplanned
from fastdiff.ops._arguments import is_unwatched
from fastdiff.ops._dispatch import LIBRARY
from fastdiff.process.noise import Stream

if TYPE_CHECKING:
    from fastdiff.nets.unet import UNet

__all__ = ["forget_activations", "part_of", "run_training_code", "train_as_one"]

LIBRARY.define(
    "training_run(Tensor code, Tensor[] parameters, Tensor(a!)[] gradients, Tensor(b!) arena, int batch, Tensor seeds, "
    "Tensor? sample_ids, int stream, int alone) -> ()"
)

_NO_SEEDS = torch.zeros(0, dtype=torch.int64, device="cpu")
_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# What a plan takes from modules besides their parameters; of the network itself, its configuration.
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    ResBlock: ("scale_shift", "resample"),
    AttentionBlock: ("num_heads", "layout"),
    Downsample: ("padding",),
    GroupNormAct: ("groups", "eps", "act"),
    Conv1x1: _CONVOLUTION,
    Conv3x3: _CONVOLUTION,
    Dropout: ("p", "training"),
    Block: (),
    Upsample: (),
    Linear: (),
    SiLU: (),
    nn.Identity: (),
    nn.Embedding: ("max_norm", "sparse"),
    nn.ModuleList: (),
    nn.Sequential: (),
}
_FORWARDS = {kind: kind.forward for kind in _SETTINGS}
# Methods that somebody may have put in the place of a module's own.
_METHODS = frozenset({"forward", "embed", "_embed_linearly", "split_heads", "beside", "_attend", "_run"})


class _Known:
    """What is kept of a network: how it looked, its plans by image size, and arenas that no pass holds."""

    def __init__(self, unet: UNet, structure: list[Any]) -> None:
        self.structure = structure
        # Kept, so that no other object is given their ids.
        self.modules = list(unet.modules())[1:]
        self.parameters = planned_parameters(unet)
        self.dropouts = [module for module in self.modules if isinstance(module, Dropout)]
        self.plans: dict[tuple[int, int], TrainingPlan | None] = {}
        self.arenas: list[Tensor] = []

    def plan(self, unet: UNet, height: int, width: int) -> TrainingPlan | None:
        if (height, width) not in self.plans:
            try:
                self.plans[height, width] = lower_training(unet, height, width)
            except Unplanned:
                self.plans[height, width] = None
        return self.plans[height, width]

    def arena(self, floats: int) -> Tensor:
        while self.arenas:
            arena = self.arenas.pop()
            if arena.numel() == floats:
                return arena
        return torch.empty(floats, device="cpu")

    def seeds(self) -> tuple[Tensor, Tensor | None] | None:
        """Seeds of the dropouts, and of which images; None where they draw in different ways."""
        draws = {id(layer.draws): layer.draws for layer in self.dropouts}
        if len(draws) > 1:
            return None
        common = next(iter(draws.values()), None)
        if common is not None:
            numbers = [layer.layer for layer in self.dropouts]
            is_whole = numbers == list(range(len(common.seeds)))
            return common.seeds if is_whole else common.seeds[numbers], common.sample_ids
        seeds = torch.zeros(len(self.dropouts), dtype=torch.int64, device="cpu")
        drawing = [number for number, layer in enumerate(self.dropouts) if layer.p > 0]
        if drawing:
            seeds[drawing] = torch.empty(len(drawing), dtype=torch.int64, device="cpu").random_()
        return seeds, None


_known: weakref.WeakKeyDictionary[UNet, _Known] = weakref.WeakKeyDictionary()


def train_as_one(unet: UNet, x: Tensor, t: Tensor, embed_label: Callable[[], Tensor] | None) -> Tensor | None:
    """Evaluate a `UNet` in training as one function, or None where its modules have to.

    They have to where a module or hook is not the network's own, a parameter is frozen or not float32 on the CPU, under
    autocast, compilers, transforms and activation checkpointing, where x wants a gradient, and for shapes that no plan
    has. The result has no second derivative.

    Args:
        unet: The network, whose class is `UNet` itself.
        x: [B, C, H, W], checked.
        t: [B], checked.
        embed_label: Gives what a label adds to the embedding, [B, 4 * channels]; None without labels.

    Returns:
        [B, out_channels, H, W] float32, channels_last.
    """
    if not _may_be_one(x):
        return None
    structure = _structure(unet)
    if structure is None:
        return None
    known = _known.get(unet)
    if known is None or known.structure != structure:
        known = _known[unet] = _Known(unet, structure)
    plan = known.plan(unet, x.shape[2], x.shape[3])
    seeds = None if plan is None else known.seeds()
    if plan is None or seeds is None:
        return None
    waves = timestep_embedding(t, unet.config.channels, unet.config.time_embedding)
    label = None if embed_label is None else embed_label()
    y: Tensor = _Network.apply(known, plan, seeds, x, waves, label, *known.parameters)  # type: ignore[no-untyped-call]
    return y


def forget_activations(unet: UNet) -> None:
    """Give back the memory that a network's training keeps for its next step."""
    if unet in _known:
        _known[unet].arenas.clear()


def _may_be_one(x: Tensor) -> bool:
    return (
        torch.is_grad_enabled()
        and ops.has_extension()
        and type(x) is Tensor
        and x.is_cpu
        and x.dtype == torch.float32
        and x.numel() > 0
        and not x.requires_grad
        and is_unwatched()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _structure(unet: UNet) -> list[Any] | None:
    """All that a plan depends on, by the objects that are there; None where a part is not the network's own."""
    found: list[Any] = [unet.config]
    waiting: list[nn.Module] = [unet]
    while waiting:
        module = waiting.pop()
        kind = type(module)
        if (
            module._forward_hooks
            or module._forward_pre_hooks
            or module._backward_hooks
            or module._backward_pre_hooks
            or not _METHODS.isdisjoint(module.__dict__)
        ):
            return None
        if module is not unet:
            if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind] or getattr(module, "recompute", False):
                return None
            found.append(id(module))
            found += [getattr(module, name) for name in _SETTINGS[kind]]
        for parameter in module._parameters.values():
            if parameter is None:
                found.append(None)
                continue
            if (
                type(parameter) is not nn.Parameter
                or not parameter.requires_grad
                or parameter.dtype != torch.float32
                or not parameter.is_cpu
            ):
                return None
            found.append(id(parameter))
            found.append(parameter.stride())
        waiting += [child for child in module._modules.values() if child is not None]
    return found


class _Network(torch.autograd.Function):
    """A plan's passes."""

    @staticmethod
    def forward(
        ctx: Any,
        known: _Known,
        plan: TrainingPlan,
        seeds: tuple[Tensor, Tensor | None],
        x: Tensor,
        waves: Tensor,
        label: Tensor | None,
        *parameters: Tensor,
    ) -> Tensor:
        """The network's result."""
        batch, (height, width) = x.shape[0], x.shape[2:]
        arena = known.arena(plan.floats * batch)
        part_of(arena, plan.image, x.permute(0, 2, 3, 1).shape).copy_(x.permute(0, 2, 3, 1))
        part_of(arena, plan.waves, waves.shape).copy_(waves)
        if label is not None and plan.label is not None:
            part_of(arena, plan.label, label.shape).copy_(label)
        alone = None if plan.alone is None else len(plan.forward)
        run_training_code(plan.forward, parameters, arena, batch, alone, seeds=seeds)
        y = torch.empty((batch, height, width, plan.channels), device="cpu")
        y.copy_(part_of(arena, plan.output, y.shape))
        ctx.save_for_backward(*parameters)
        ctx.known, ctx.plan, ctx.seeds, ctx.arena, ctx.batch = known, plan, seeds, arena, batch
        return y.permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of what a label adds, and of the parameters."""
        parameters, plan, batch = ctx.saved_tensors, ctx.plan, ctx.batch
        # The way back takes the room of what it no longer needs.
        keeps = torch._C._autograd._get_current_graph_task_keep_graph()
        arena = ctx.arena.clone() if keeps else ctx.arena
        slope = grad.permute(0, 2, 3, 1)
        part_of(arena, plan.slope, slope.shape).copy_(slope)
        gradients = [torch.empty_like(parameter) for parameter in parameters]
        run_training_code(plan.backward, parameters, arena, batch, plan.alone, gradients=gradients, seeds=ctx.seeds)
        label = None
        if plan.label_grad is not None:
            label = part_of(arena, plan.label_grad, torch.Size((batch, plan.width))).clone()
        if not keeps:
            ctx.arena = None
            ctx.known.arenas.append(arena)
        return (None, None, None, None, None, label, *gradients)


def part_of(arena: Tensor, place: int, shape: torch.Size) -> Tensor:
    """What lies at a place, as a tensor of that shape, [B, ...]."""
    first = place * shape[0]
    return arena[first : first + shape.numel()].view(shape)


def run_training_code(
    code: Tensor,
    parameters: Sequence[Tensor],
    arena: Tensor,
    batch: int,
    alone: int | None,
    *,
    gradients: Sequence[Tensor] = (),
    seeds: tuple[Tensor, Tensor | None] | None = None,
) -> None:
    """Run instructions of a plan over an arena; `seeds` are those of its dropouts."""
    drawn, sample_ids = (_NO_SEEDS, None) if seeds is None else seeds
    torch.ops.fastdiff.training_run.default(
        code, parameters, gradients, arena, batch, drawn, sample_ids, Stream.DROPOUT, -1 if alone is None else alone
    )
