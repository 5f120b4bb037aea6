"""An `EncoderUNet` in evaluation on the CPU as one function of autograd: its features, and the images' gradient, are a
call each of C++ over a plan.

What no plan computes, or somebody looks into, runs module by module. So do gradients of the parameters, which nobody
asks for who is guided by a classifier: the features are then computed again.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
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
    timestep_embedding,
)
from fastdiff.nets.encoder_lowering import EncoderPlan, lower_encoder
from fastdiff.nets.training_pass import part_of, run_training_code
from fastdiff.nets.training_plan import Unplanned
from fastdiff.ops._arguments import is_unwatched

if TYPE_CHECKING:
    from fastdiff.nets.encoder import EncoderUNet

__all__ = ["register_block", "run_encoder"]

_CONVOLUTION = ("kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
# What a plan takes from modules besides their parameters.
_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    ResBlock: ("scale_shift", "resample"),
    AttentionBlock: ("num_heads", "layout"),
    Downsample: ("padding",),
    GroupNormAct: ("groups", "eps", "act"),
    Conv1x1: _CONVOLUTION,
    Conv3x3: _CONVOLUTION,
    nn.Conv1d: ("kernel_size",),
    nn.Conv2d: ("kernel_size",),
    nn.GroupNorm: ("num_groups", "eps"),
    nn.AdaptiveAvgPool2d: ("output_size",),
    **dict.fromkeys((Block, Dropout, Linear, SiLU, nn.Linear, nn.SiLU, nn.ReLU, nn.Flatten), ()),
    **dict.fromkeys((nn.Identity, nn.ModuleList, nn.Sequential), ()),
}
_FORWARDS = {kind: kind.forward for kind in _SETTINGS}
# Methods that somebody may have put in the place of a module's own.
_METHODS = frozenset({"forward", "by_modules", "embed", "split_heads", "beside", "_attend", "_run"})


def register_block(kind: type[nn.Module], settings: tuple[str, ...] = ()) -> None:
    """Tell of a class that computes in an `EncoderUNet` what its plan does, and what that takes from it."""
    _SETTINGS[kind] = settings
    _FORWARDS[kind] = kind.forward


class _Known:
    """What is kept of a network: how it looked, its plans, and arenas that no pass holds."""

    def __init__(self, encoder: EncoderUNet, structure: list[Any]) -> None:
        self.structure = structure
        # Kept, so that no other object is given their ids.
        self.modules = list(encoder.modules())[1:]
        self.parameters = list(encoder.parameters())
        self.plans: dict[tuple[int, int, bool], EncoderPlan | None] = {}
        self.arenas: list[Tensor] = []

    def plan(self, encoder: EncoderUNet, height: int, width: int, gradient: bool) -> EncoderPlan | None:
        key = (height, width, gradient)
        if key not in self.plans:
            try:
                self.plans[key] = lower_encoder(encoder, height, width, gradient=gradient)
            except Unplanned:
                self.plans[key] = None
        return self.plans[key]

    def arena(self, floats: int) -> Tensor:
        while self.arenas:
            arena = self.arenas.pop()
            if arena.numel() == floats:
                return arena
        # Used again by calls that are in no inference mode.
        with torch.inference_mode(False):
            return torch.empty(floats, device="cpu")


_known: weakref.WeakKeyDictionary[EncoderUNet, _Known] = weakref.WeakKeyDictionary()


def run_encoder(
    encoder: EncoderUNet, x: Tensor, t: Tensor, again: Callable[[Tensor], Tensor], parameters: Iterable[Tensor]
) -> Tensor | None:
    """Evaluate a classifier as one function, or None where its modules have to.

    Args:
        encoder: The network, in evaluation mode.
        x: Images [B, C, H, W].
        t: Times [B].
        again: Gives the logits of images module by module, for gradients of the parameters.
        parameters: Whose gradients `again` gives.

    Returns:
        Logits [B, out_channels] float32; their gradient is that of x, and has no derivative.
    """
    if not _may_be_one(encoder, x, t):
        return None
    parameters = tuple(parameters)
    gradient = torch.is_grad_enabled() and x.requires_grad
    if torch.is_grad_enabled() and not gradient and any(parameter.requires_grad for parameter in parameters):
        return None
    structure = _structure(encoder)
    if structure is None:
        return None
    known = _known.get(encoder)
    if known is None or known.structure != structure:
        known = _known[encoder] = _Known(encoder, structure)
    plan = known.plan(encoder, x.shape[2], x.shape[3], gradient)
    if plan is None:
        return None
    waves = timestep_embedding(t, encoder.config.channels, encoder.config.time_embedding)
    if gradient:
        y: Tensor = _Classifier.apply(encoder, known, plan, again, waves, x, *parameters)  # type: ignore[no-untyped-call]
        return y
    with torch.no_grad():
        features, arena = _features(known, plan, x, waves)
        known.arenas.append(arena)
        return _head(encoder, features)


def _may_be_one(encoder: EncoderUNet, x: Tensor, t: Tensor) -> bool:
    return (
        ops.has_extension()
        and type(x) is Tensor
        and type(t) is Tensor
        and x.is_cpu
        and t.is_cpu
        and x.dtype == torch.float32
        and x.ndim == 4
        and x.shape[1] == encoder.config.in_channels
        and x.numel() > 0
        and t.shape == x.shape[:1]
        and not t.requires_grad
        and not any(size % encoder.config.size_divisor for size in x.shape[2:])
        and is_unwatched()
        and not torch.is_autocast_enabled("cpu")
        and forward_ad._current_level < 0
        and not torch.nn.modules.module._has_any_global_hook()
    )


def _structure(encoder: EncoderUNet) -> list[Any] | None:
    """All that a plan depends on, by the objects that are there; None where a part is not the network's own."""
    found: list[Any] = [encoder.config, encoder.pool]
    waiting: list[nn.Module] = [encoder]
    while waiting:
        module = waiting.pop()
        kind = type(module)
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        # Those of the whole network are called around this.
        if (module is not encoder and any(hooks)) or not _METHODS.isdisjoint(module.__dict__):
            return None
        if module is not encoder:
            if kind not in _FORWARDS or kind.forward is not _FORWARDS[kind]:
                return None
            if isinstance(module, Dropout) and module.training and module.p > 0:
                return None
            found.append(id(module))
            found += [getattr(module, name) for name in _SETTINGS[kind]]
        for parameter in module._parameters.values():
            if parameter is None:
                found.append(None)
                continue
            if not isinstance(parameter, nn.Parameter) or parameter.dtype != torch.float32 or not parameter.is_cpu:
                return None
            found.append(id(parameter))
            found.append(parameter.stride())
        waiting += [child for child in module._modules.values() if child is not None]
    return found


def _features(known: _Known, plan: EncoderPlan, x: Tensor, waves: Tensor) -> tuple[list[Tensor], Tensor]:
    """What the head reads, [B, H, W, C] each, and the arena."""
    batch = len(x)
    arena = known.arena(plan.floats * batch)
    part_of(arena, plan.image, x.permute(0, 2, 3, 1).shape).copy_(x.permute(0, 2, 3, 1))
    part_of(arena, plan.waves, waves.shape).copy_(waves)
    run_training_code(plan.forward, known.parameters, arena, batch, len(plan.forward) if plan.alone else None)
    return [part_of(arena, place, torch.Size((batch, *shape))).clone() for place, shape in plan.features], arena


def _head(encoder: EncoderUNet, features: list[Tensor]) -> Tensor:
    """Logits of the features, without gradients of the weights."""
    layers = list(cast(nn.Sequential, encoder.out))

    def linear(x: Tensor, layer: Any) -> Tensor:
        # The weights of a convolution of one pixel are those of a linear layer.
        return ops.linear(x, layer.weight.detach().flatten(1), None if layer.bias is None else layer.bias.detach())

    if encoder.pool == "adaptive":
        return linear(features[0].flatten(1), layers[3])
    if encoder.pool == "attention":
        pool = cast(Any, layers[2])
        mean, pixels = (feature.flatten(1, 2) for feature in features)
        tokens = torch.cat([mean, pixels], dim=1) + pool.positional_embedding.detach().T
        h = ops.attention(linear(tokens, pool.qkv_proj), pool.num_heads, layout="new", implementation="cpu")
        return linear(h[:, 0], pool.c_proj)
    h = linear(torch.cat([feature.flatten(1) for feature in features], dim=1), layers[0])
    if encoder.pool == "spatial":
        return linear(F.relu(h), layers[2])
    norm = cast(nn.GroupNorm, layers[1])
    weight, bias = norm.weight.detach(), norm.bias.detach()
    h = ops.group_norm_act(h[:, :, None, None], weight, bias, norm.num_groups, eps=norm.eps)
    return linear(h.flatten(1), layers[3])


class _Classifier(torch.autograd.Function):
    """A plan's passes, and the head between them."""

    @staticmethod
    def forward(
        ctx: Any,
        encoder: EncoderUNet,
        known: _Known,
        plan: EncoderPlan,
        again: Callable[[Tensor], Tensor],
        waves: Tensor,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Logits."""
        features, arena = _features(known, plan, x, waves)
        with torch.enable_grad():
            leaves = [feature.requires_grad_() for feature in features]
            logits = _head(encoder, leaves)
        ctx.save_for_backward(x, *known.parameters, *parameters)
        ctx.num_given = len(parameters)
        ctx.known, ctx.plan, ctx.arena, ctx.again, ctx.leaves, ctx.logits = known, plan, arena, again, leaves, logits
        return logits.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """Of the images; of the parameters where somebody wants those."""
        x, *saved = ctx.saved_tensors
        parameters = saved[len(saved) - ctx.num_given :]
        wanted = [parameter for parameter in parameters if _is_wanted(parameter)]
        if wanted:
            return (None, None, None, None, None, *_by_modules(ctx.again, x, grad, parameters, wanted))
        known, plan, batch = ctx.known, ctx.plan, len(x)
        # The way back takes the room of what it no longer needs.
        keeps = torch._C._autograd._get_current_graph_task_keep_graph()
        arena = ctx.arena.clone() if keeps else ctx.arena
        slopes = torch.autograd.grad(ctx.logits, ctx.leaves, grad, retain_graph=keeps)
        for place, slope in zip(plan.slopes, slopes, strict=True):
            part_of(arena, place, slope.shape).copy_(slope)
        alone = len(plan.backward) if plan.alone else None
        run_training_code(plan.backward, known.parameters, arena, batch, alone)
        shape = x.permute(0, 2, 3, 1).shape
        dx = part_of(arena, plan.image_grad, shape).clone().permute(0, 3, 1, 2)
        if not keeps:
            ctx.arena = ctx.logits = ctx.leaves = None
            known.arenas.append(arena)
        return (None, None, None, None, None, dx, *[None] * len(parameters))


def _is_wanted(parameter: Tensor) -> bool:
    """Whether the pass that is under way gives this parameter a gradient."""
    if not parameter.requires_grad:
        return False
    try:
        return torch._C._will_engine_execute_node(torch.autograd.graph.get_gradient_edge(parameter).node)
    except RuntimeError:
        # It does not say so of a leaf that was asked for by name.
        return True


def _by_modules(
    again: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, parameters: list[Tensor], wanted: list[Tensor]
) -> list[Tensor | None]:
    with torch.enable_grad():
        image = x.detach().requires_grad_()
        found = torch.autograd.grad(again(image), [image, *wanted], grad, allow_unused=True)
    of = {id(parameter): gradient for parameter, gradient in zip(wanted, found[1:], strict=True)}
    return [found[0], *(of.get(id(parameter)) for parameter in parameters)]
