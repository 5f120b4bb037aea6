"""A live network of another project whose evaluations run in the engine, wherever a call of it can."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.convert.foreign import Call, foreign_of
from fastdiff.engine.families import family_of
from fastdiff.engine.native import NativeNetwork
from fastdiff.engine.watch import Watch
from fastdiff.nets.encoder import EncoderUNet
from fastdiff.nets.encoder_lowering import lower_encoder
from fastdiff.nets.encoder_pass import run_encoder
from fastdiff.nets.fused_modules import Fused, own_class

__all__ = ["InEngine", "engine_of", "forget", "what_of"]

# A whole float32 network by two executors, over the largest value of its output.
TOLERANCE = 1e-4
# Evaluations with the same weights before they are packed anew: a network that is trained meanwhile is not packed at
# each look at it.
PATIENCE = 2
_LOGITS = "the whole classifier in the engine, with the gradient of its images"


class _Engine:
    """A network in the engine, made anew where its module has changed.

    Attributes:
        network: What runs, or None.
        obstacle: Why it does not.
    """

    def __init__(self) -> None:
        self.network: NativeNetwork | EncoderUNet | None = None
        self.obstacle: str | None = None
        self._watch = Watch()
        self._processors: list[tuple[Any, type]] = []
        self._dropouts: list[Any] = []
        self._seen = 0

    def look(self, module: nn.Module, *, patience: int = PATIENCE) -> None:
        """Compare the module with what runs, and make that anew once the same was seen often enough."""
        if (strange := _strange(module)) is not None:
            self._watch.forget()
            self.network, self.obstacle = None, strange
            return
        change = self._watch.look(module)
        if change != "nothing" or any(type(attention.processor) is not kind for attention, kind in self._processors):
            self.network, self.obstacle, self._seen = None, "its weights have just changed", 0
            self._watch.remember(module)
            self._processors = [(m, type(m.processor)) for m in module.modules() if hasattr(m, "processor")]
            self._dropouts = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.p > 0]
        if self.network is None and self._seen <= patience:
            if self._seen == patience:
                self._make(module)
            self._seen += 1

    def _make(self, module: nn.Module) -> None:
        self.obstacle = _obstacle(module)
        if self.obstacle is not None:
            return
        foreign = foreign_of(module)
        assert foreign is not None
        try:
            own = foreign.to_own(module)
            network: NativeNetwork | EncoderUNet
            if isinstance(own, EncoderUNet):
                network, apart = own, _difference_of_logits(module, own)
            else:
                network = NativeNetwork(own)
                apart = _difference(module, network, own)
        except (ValueError, RuntimeError, AttributeError, LookupError, TypeError) as error:
            # Whatever a class of the same name lacks.
            self.obstacle = str(error).splitlines()[0]
            return
        if not apart <= TOLERANCE:
            self.obstacle = f"it computes something else: the engine differs by {apart:.1e} of the largest value"
            return
        self.network = network

    def is_training(self) -> bool:
        """Whether a dropout is at work."""
        return any(dropout.training for dropout in self._dropouts)


def _obstacle(module: nn.Module) -> str | None:
    for name, part in module.named_modules():
        if name and (part._forward_hooks or part._forward_pre_hooks):
            return f"the engine does not call hooks, and {name} has one"
        if "forward" in part.__dict__:
            return f"the forward of {name or 'the network'} was replaced"
        if isinstance(part, torch.jit.ScriptModule):
            return f"{name or 'the network'} is TorchScript"
    return None


def _strange(module: nn.Module) -> str | None:
    """What is neither float32 nor on the CPU."""
    for parameter in module.parameters():
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            return f"the engine runs float32 networks on the CPU, and this has {parameter.dtype} on {parameter.device}"
    return None


def _difference(module: nn.Module, network: NativeNetwork, own: Any) -> float:
    """How far the engine's output is from the module's own on small random images, over the largest value."""
    family, generator = family_of(own), torch.Generator().manual_seed(0)
    divisor = int(getattr(own, "downsample_factor", 0) or own.config.size_divisor)
    height = 1 if getattr(own, "is_flat", False) else 2 * divisor
    x = torch.randn(2, family.channels(own)[0], height, 2 * divisor, generator=generator)
    classes = getattr(getattr(own, "config", None), "num_classes", None)
    foreign = foreign_of(module)
    assert foreign is not None
    labels = None if classes is None else torch.tensor([0, classes - 1])
    given, options = foreign.example(x, torch.tensor([1, 500]), labels)
    call = foreign.call(module, given, options)
    assert call is not None
    with torch.no_grad():
        expected = own_class(module).forward(module, *given, **options)
        expected = expected if isinstance(expected, Tensor) else expected[0]
        found = call.wrap(network(call.x, call.t, call.y, **call.extras))
        found = found if isinstance(found, Tensor) else found[0]
    if found.shape != expected.shape:
        return float("inf")
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _difference_of_logits(module: nn.Module, own: EncoderUNet) -> float:
    """The same of a classifier's logits and of their gradient."""
    size = own.config.image_size if own.pool == "attention" else 4 * own.config.size_divisor
    # Says what has no instruction.
    lower_encoder(own, size, size, gradient=True)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, own.config.in_channels, size, size, generator=generator)
    kind: Any = own_class(module)
    t = torch.tensor([500])
    weights = torch.randn(1, own.config.out_channels, generator=generator)
    values = []
    forwards: tuple[Any, ...] = (lambda image: kind.forward(module, image, t), lambda image: own(image, t))
    for forward in forwards:
        with torch.enable_grad():
            image = x.clone().requires_grad_()
            logits = forward(image)
            values.append((logits.detach(), torch.autograd.grad((logits * weights).sum(), image)[0]))
    apart = 0.0
    for expected, found in zip(*values, strict=True):
        if found.shape != expected.shape:
            return float("inf")
        apart = max(apart, float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)))
    return apart


_engines: weakref.WeakKeyDictionary[nn.Module, _Engine] = weakref.WeakKeyDictionary()


def engine_of(module: nn.Module) -> _Engine:
    """The engine of a module, kept as long as the module."""
    if module not in _engines:
        _engines[module] = _Engine()
    return _engines[module]


def forget(module: nn.Module) -> None:
    """Let the engine of a module go."""
    _engines.pop(module, None)


def what_of(module: nn.Module) -> str:
    """What of a network runs in the engine, for a report."""
    foreign = foreign_of(module)
    return _LOGITS if foreign is not None and foreign.classifies else InEngine.what


class InEngine(Fused):
    """A whole network. In eval mode, without gradients, in float32 on the CPU, the engine evaluates it.

    A classifier's gradient of its images is the engine's too. Anything else, and a network with a hook inside or a part
    that the engine has no instruction for, is its own class's, with what is fused in it.
    """

    what = "the whole network in the engine, without gradients"

    def forward(self, *args: Any, **options: Any) -> Any:
        """As its own class's."""
        call = self._engine_call(args, options)
        if call is not None:
            engine = engine_of(self)
            engine.look(self)
            output = None if engine.is_training() else self._evaluated(engine.network, call)
            if output is not None:
                return call.wrap(output)
        return self.own.forward(self, *args, **options)

    def let_go(self) -> None:
        """Give the engine's copy of the weights back."""
        forget(self)

    def _evaluated(self, network: NativeNetwork | EncoderUNet | None, call: Call) -> Tensor | None:
        if network is None:
            return None
        if isinstance(network, EncoderUNet):
            return run_encoder(
                network, call.x, call.t, lambda image: self.own.forward(self, image, call.t), self.parameters()
            )
        try:
            output = network.evaluate(call.x, call.t, call.y, **call.extras)
        except ValueError:
            # A size or a label that does not fit, of which its own class has something to say.
            return None
        # In the layout that its own class would give.
        return output.contiguous() if call.x.is_contiguous() else output

    def _engine_call(self, args: tuple[Any, ...], options: dict[str, Any]) -> Call | None:
        if torch.compiler.is_compiling() or self.training or torch.is_autocast_enabled("cpu"):
            return None
        foreign = foreign_of(self)
        if foreign is None or (torch.is_grad_enabled() and not foreign.classifies):
            return None
        return foreign.call(self, args, options)
