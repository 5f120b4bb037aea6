"""Drop-in speed for other people's networks: their group norms and attention by the fused ops, in place and reversibly.

A module is replaced by giving it another class (see `fastdiff.nets.fused_modules`), so nothing is copied or renamed.
What a class computes is not believed on its name: before the first of its kind is replaced, the new class has to give
the results of the old one on a copy with random weights.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastdiff.nets import fused_modules as fused
from fastdiff.nets.acceleration_check import MODULE_TOLERANCE, compare_modules, difference, evaluate, judge, quiet
from fastdiff.nets.acceleration_timing import time_modules, unfuse
from fastdiff.nets.fused_modules import (
    Fused,
    fused_class,
    is_observed,
    is_silu,
)
from fastdiff.nets.unet import AttentionBlock, GroupNormAct
from fastdiff.ops import attention
from fastdiff.tensors import QkvLayout

__all__ = ["AccelerationReport", "Left", "Replaced", "accelerate", "qkv_layout_of", "restore"]

# From a module, and what was proven so far, to its class, the reason why it has none, or None for what is no candidate.
_Choose = Callable[[nn.Module, dict[tuple[Any, ...], bool]], type[Fused] | str | None]
# Fused modules stand in each other three deep at most; what differs by less than this is the clock's.
_ROUNDS, _SLOWER = 3, 1.03
# The kernels' limit of channels per group.
_MAX_GROUP_SIZE = 4096


@dataclass(frozen=True)
class Replaced:
    """A module that computes with a fused op now.

    Attributes:
        name: Of the module in the network, "" for the network itself.
        kind: Its own class's name.
        what: What is fused.
        error: Its largest difference from its own class on the example, over the largest value; None without one, or
            where the example did not reach it.
    """

    name: str
    kind: str
    what: str
    error: float | None = None


@dataclass(frozen=True)
class Left:
    """A norm or an attention that stays as it is.

    Attributes:
        name: Of the module in the network.
        kind: Its class's name.
        reason: Why.
    """

    name: str
    kind: str
    reason: str


@dataclass(frozen=True)
class AccelerationReport:
    """What `accelerate` did. `str()` of it is a table.

    Attributes:
        replaced: Modules that compute with fused ops now, those of an earlier call included.
        left: Norms and attentions that do not, and why.
        error: Largest difference of the network's outputs before and after, over the largest value; None without an
            example.
    """

    replaced: tuple[Replaced, ...]
    left: tuple[Left, ...]
    error: float | None = None

    def __str__(self) -> str:
        """A line per kind, with the names of what was left."""
        lines = [f"{len(self.replaced)} modules replaced, {len(self.left)} left as they were"]
        for (kind, what), count in Counter((r.kind, r.what) for r in self.replaced).items():
            lines.append(f"  replaced {count} x {kind}: {what}")
        for (kind, reason), count in Counter((left.kind, left.reason) for left in self.left).items():
            names = [left.name or "the network" for left in self.left if (left.kind, left.reason) == (kind, reason)]
            shown = ", ".join(names[:3]) + (", ..." if count > 3 else "")
            lines.append(f"  left {count} x {kind}: {reason} ({shown})")
        if self.error is not None:
            lines.append(f"  largest difference of the outputs: {self.error:.1e} of the largest value")
        return "\n".join(lines)


def accelerate(model: nn.Module, check: Any = None, *, tolerance: float | None = None) -> AccelerationReport:
    """Give the modules of a network that fused ops compute another class; see `fastdiff.accelerate`."""
    given: object = model
    if not isinstance(given, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{_instead_of(given)}")
    if tolerance is not None and (check is None or not tolerance >= 0):
        raise ValueError(f"tolerance must be at least 0 and comes with check, got {tolerance}")
    if check is None:
        left = _replace(model)
        return AccelerationReport(_list_replaced(model, {}), left)
    restore(model)
    with quiet(model):
        before = evaluate(model, check)
        try:
            left = _replace(model)
            module_errors = compare_modules(model, check)
            error = difference(before, evaluate(model, check))
            judge(model, before, error, module_errors, tolerance)
            slower = _unfuse_slower(model, check) if _is_on_cpu(model) else ()
        # Whatever it is, Ctrl-C included: the network must not be left half replaced.
        except BaseException:
            restore(model)
            raise
    return AccelerationReport(_list_replaced(model, module_errors), (*left, *slower), error)


def _is_on_cpu(model: nn.Module) -> bool:
    return all(parameter.device.type == "cpu" for parameter in model.parameters())


def _unfuse_slower(model: nn.Module, check: Any) -> tuple[Left, ...]:
    """Give fused modules that are slower than their own class, on what the example gives them, that class again."""
    left: list[Left] = []
    # What a block fused shows once the block has its own class again.
    for _ in range(_ROUNDS):
        times = time_modules(lambda: evaluate(model, check), model)
        slow = {name: (before, after) for name, (before, after) in times.items() if after > _SLOWER * before}
        for name, (before, after) in slow.items():
            kind = unfuse(model, name)
            left.append(Left(name, kind, f"slower by a fused op: {1e6 * after:.0f} us against {1e6 * before:.0f} us"))
        if not slow:
            break
    return tuple(left)


def _instead_of(given: object) -> str:
    """What to give in the place of something that is no network."""
    if not isinstance(getattr(given, "unet", None), nn.Module):
        return ": give the network itself"
    whole = type(given).__module__.partition(".")[0] == "diffusers"
    also = ", or the whole pipeline to fastdiff.compat.diffusers.accelerate" if whole else ""
    return f": give its network, .unet{also}"


def restore(model: nn.Module) -> int:
    """Undo `accelerate`: every module gets its own class again, and the engine's memory is given back.

    Args:
        model: A network, accelerated or not.

    Returns:
        How many modules were changed.
    """
    modules = [module for module in model.modules() if isinstance(module, Fused)]
    for module in modules:
        module.let_go()
        _set_class(module, module.own)
    return len(modules)


def _set_class(module: Any, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _list_replaced(model: nn.Module, errors: Mapping[str, float]) -> tuple[Replaced, ...]:
    return tuple(
        Replaced(name, type(module).own.__name__, module.what, errors.get(name))
        for name, module in model.named_modules()
        if isinstance(module, Fused)
    )


def _replace(model: nn.Module) -> tuple[Left, ...]:
    """Replace what can be; norms first, since blocks count on them."""
    left: dict[str, Left] = {}
    proven: dict[tuple[Any, ...], bool] = {}
    modules = list(model.named_modules())
    choices: tuple[_Choose, ...] = (_choose_norm, _choose_attention, _choose_block)
    for choose in choices:
        for name, module in modules:
            if isinstance(module, Fused):
                continue
            chosen = choose(module, proven)
            if isinstance(chosen, str):
                left[name] = Left(name, type(module).__name__, chosen)
            elif chosen is not None:
                _set_class(module, fused_class(chosen, type(module)))
                left.pop(name, None)
    _join_last_norm(model)
    return tuple(left[name] for name, _ in modules if name in left)


def _choose_norm(module: nn.Module, proven: dict[tuple[Any, ...], bool]) -> type[Fused] | str | None:
    """The class for a norm, the reason why not, or None for what is no norm."""
    if isinstance(module, GroupNormAct):
        return "fastdiff's own, fused already"
    if not isinstance(module, nn.GroupNorm):
        is_norm = type(module).__name__.lower().endswith(("norm", "norm1d", "norm2d", "norm3d"))
        return "not a group norm" if is_norm else None
    if reason := _obstacle(module):
        return reason
    if any(getattr(module, part, None) is None for part in ("weight", "bias")):
        return "it has no weight and bias"
    if module.num_channels // module.num_groups > _MAX_GROUP_SIZE:
        return f"more than {_MAX_GROUP_SIZE} channels per group"
    if type(module).forward is nn.GroupNorm.forward:
        return fused.FusedNorm
    if type(module).__name__ == "GroupNorm32" and _proves(proven, module, fused.FusedNorm, _norm_example):
        return fused.FusedNorm
    return "a subclass of GroupNorm with a forward of its own"


def _choose_attention(module: nn.Module, proven: dict[tuple[Any, ...], bool]) -> type[Fused] | str | None:
    name = type(module).__name__
    m: Any = module
    if isinstance(module, AttentionBlock):
        return "fastdiff's own, fused already"
    if name == "Attention" and hasattr(module, "processor"):
        return _choose_diffusers_attention(m)
    if name in ("QKVAttention", "QKVAttentionLegacy"):
        if reason := _obstacle(module):
            return reason
        return _qkv_layout(m) or "it computes none of the known layouts"
    if name == "Attend" and hasattr(module, "flash"):
        if module.flash:
            return "PyTorch's fused attention already"
        if reason := _obstacle(module):
            return reason
        return fused.FusedAttend if _proves(proven, module, fused.FusedAttend, _attend_example) else "unknown forward"
    if "attention" in name.lower() and not any(_is_attention(child) for child in module.modules() if child != module):
        return "no fused op computes this class"
    return None


def _is_attention(module: nn.Module) -> bool:
    return "attention" in type(module).__name__.lower() or type(module).__name__ == "Attend"


def _choose_diffusers_attention(m: Any) -> type[Fused] | str:
    if reason := _obstacle(m):
        return reason
    known = ("AttnProcessor", "AttnProcessor2_0")
    if type(m.processor).__name__ not in known:
        return f"processor {type(m.processor).__name__} is none of {', '.join(known)}"
    if m.is_cross_attention or m.only_cross_attention or m.added_kv_proj_dim is not None:
        return "cross-attention"
    if m.spatial_norm is not None or m.norm_q is not None or m.norm_k is not None:
        return "norms of its own on q, k or the input"
    layers = (m.to_q, m.to_k, m.to_v)
    if any(type(layer) is not nn.Linear for layer in layers):
        return "q, k and v are not all plain linear layers"
    if len({layer.weight.shape for layer in layers}) > 1 or len({layer.bias is None for layer in layers}) > 1:
        return "q, k and v differ in size"
    if m.to_out is None:
        return "it has no projection of its result"
    return fused.FusedDiffusersAttention


def _choose_block(module: nn.Module, proven: dict[tuple[Any, ...], bool]) -> type[Fused] | str | None:
    """The class for what holds norms, or why it has none though its name is known."""
    m: Any = module
    name = type(module).__name__
    if type(module) is nn.Sequential:
        pairs = zip(module, list(module)[1:], strict=False)
        found = [_computes_silu(b) for a, b in pairs if isinstance(a, fused.FusedNorm) and is_silu(b)]
        return fused.FusedSequential if found and all(found) and _obstacle(module) is None else None
    kind: type[Fused]
    example: Callable[[Any], list[Any]]
    if name == "ResnetBlock2D" and type(module).__module__.startswith("diffusers."):
        kind, example = fused.FusedDiffusersBlock, _diffusers_example
        known = m.time_embedding_norm in ("default", "scale_shift") and _are_known((m.norm1, m.norm2), m.nonlinearity)
    elif name == "ResBlock" and hasattr(module, "_forward") and hasattr(module, "use_scale_shift_norm"):
        kind, example = fused.FusedOpenAIBlock, _openai_example
        layers = list(getattr(m, "out_layers", ()))
        known = len(layers) > 2 and _are_known((layers[0],), layers[1])
    elif name == "Block" and {"proj", "norm", "act"} <= set(module._modules) and isinstance(m.norm, nn.GroupNorm):
        kind, example = fused.FusedLucidrainsBlock, _lucidrains_example
        known = _are_known((m.norm,), m.act)
    else:
        return None
    if reason := _obstacle(module):
        return reason
    if known and _proves(proven, module, kind, example):
        return kind
    return "it does not compute what its class is known for; its norms are taken one by one"


def _are_known(norms: tuple[nn.Module, ...], act: nn.Module) -> bool:
    return all(isinstance(norm, fused.FusedNorm) for norm in norms) and is_silu(act) and _computes_silu(act)


def _join_last_norm(model: nn.Module) -> None:
    """diffusers' UNet2DModel calls conv_norm_out and then conv_act, each of them once and nowhere else."""
    for module in model.modules():
        m: Any = module
        if type(module).__name__ != "UNet2DModel" or not type(module).__module__.startswith("diffusers."):
            continue
        norm, act = m.conv_norm_out, m.conv_act
        uses = Counter(id(child) for _, child in model.named_modules(remove_duplicate=False))
        alone = uses[id(norm)] == uses[id(act)] == 1
        if alone and type(act) is nn.SiLU and isinstance(norm, fused.FusedNorm) and not is_observed(norm, act):
            _set_class(norm, fused_class(fused.FusedNormSiLU, norm.own))
            _set_class(act, fused_class(fused.PassedSiLU, nn.SiLU))


def _obstacle(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "it is TorchScript"
    if "forward" in module.__dict__:
        return "its forward was replaced on the instance"
    return None


def _computes_silu(module: nn.Module) -> bool:
    if type(module) is nn.SiLU:
        return True
    x = torch.linspace(-8, 8, 33)
    return not is_observed(module) and _is_close(module(x.clone()), F.silu(x))


def _qkv_layout(m: Any) -> type[Fused] | None:
    """By what the module computes: the same class name stands for different layouts."""
    num_heads = int(getattr(m, "n_heads", 1))
    qkv = _random((2, 3 * num_heads * 4, 5))
    with torch.no_grad():
        found = type(m).forward(m, qkv)
        for mixin in (fused.FusedQkvLegacy, fused.FusedQkvNew):
            expected = attention(qkv.transpose(1, 2), num_heads, layout=mixin.layout, implementation="reference")
            if found.shape == (2, num_heads * 4, 5) and _is_close(found, expected.transpose(1, 2)):
                return mixin
    return None


def qkv_layout_of(module: nn.Module) -> QkvLayout | None:
    """How q, k and v lie in what an OpenAI attention is given, by what it computes; None for no known way."""
    found = _qkv_layout(module)
    return None if found is None else cast(type[fused.FusedQkvLegacy], found).layout


def _proves(proven: dict[tuple[Any, ...], bool], module: nn.Module, mixin: type[Fused], example: Any) -> bool:
    """Whether the mixin computes what the module's own class does, on a copy with random weights, float32 on the CPU.

    Once per class and settings: random weights, since those of a residual branch may be zero and hide it.
    """
    key = (type(module), mixin, *_settings(module))
    if key not in proven:
        try:
            proven[key] = _prove(module, mixin, example)
        except Exception:
            # Whatever goes wrong in an unknown class, it is not the one that we know.
            proven[key] = False
    return proven[key]


def _prove(module: nn.Module, mixin: type[Fused], example: Any) -> bool:
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        trial = copy.deepcopy(module).to("cpu", torch.float32).eval()
        for child in trial.modules():
            child._forward_hooks.clear()
            child._forward_pre_hooks.clear()
        for i, parameter in enumerate(trial.parameters()):
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            parameter.copy_(_random(tuple(parameter.shape), seed=i) / fan**0.5)
        arguments = example(trial)
        before = [trial(*a) for a in arguments]
        _set_class(trial, fused_class(mixin, type(trial)))
        after = [trial(*a) for a in arguments]
    return all(_is_close(a, b) for a, b in zip(after, before, strict=True))


def _settings(module: nn.Module) -> Iterator[Any]:
    """Plain settings and the classes of the parts, which together say what a forward does."""
    for name, value in sorted(module.__dict__.items()):
        if isinstance(value, bool | str | float) and name != "training":
            yield name, value
    for name, child in module.named_modules():
        yield name, type(child)


def _norm_example(trial: Any) -> list[tuple[Tensor, ...]]:
    return [(_random((2, trial.num_channels, 3, 2)) + 0.5,)]


def _attend_example(trial: Any) -> list[tuple[Tensor, ...]]:
    return [(_random((1, 2, 5, 8)), _random((1, 2, 7, 8), 1), _random((1, 2, 7, 8), 2))]


def _diffusers_example(trial: Any) -> list[tuple[Tensor | None, ...]]:
    x = _random((2, trial.norm1.num_channels, 8, 8))
    time = None if trial.time_emb_proj is None else _random((2, trial.time_emb_proj.in_features), 1)
    return [(x, time)]


def _openai_example(trial: Any) -> list[tuple[Tensor, ...]]:
    sides = {nn.Conv1d: (16,), nn.Conv2d: (8, 8), nn.Conv3d: (4, 4, 4)}[type(trial.in_layers[-1])]
    x = _random((2, trial.in_layers[0].num_channels, *sides))
    return [(x, _random((2, trial.emb_layers[-1].in_features), 1))]


def _lucidrains_example(trial: Any) -> list[tuple[Any, ...]]:
    x, width = _random((2, trial.proj.in_channels, 6, 6)), trial.norm.num_channels
    return [(x,), (x, (_random((2, width, 1, 1), 1), _random((2, width, 1, 1), 2)))]


def _random(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _is_close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and difference([a], [b]) <= MODULE_TOLERANCE[torch.float32]
