"""Training in float16 under their names: float32 masters of the parameters, and a scale of the loss that adapts."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fastdiff.compat.guided_diffusion import logger
from fastdiff.nets.unet import AttentionBlock

__all__ = [
    "INITIAL_LOG_LOSS_SCALE",
    "MixedPrecisionTrainer",
    "check_overflow",
    "convert_module_to_f16",
    "convert_module_to_f32",
    "get_param_groups_and_shapes",
    "keep_their_shapes",
    "make_master_params",
    "master_params_to_model_params",
    "master_params_to_state_dict",
    "model_grads_to_master_grads",
    "param_grad_or_zeros",
    "state_dict_to_master_params",
    "unflatten_master_params",
    "zero_grad",
    "zero_master_grads",
]

INITIAL_LOG_LOSS_SCALE = 20.0
"""log2 of the first scale of the loss."""

Named = Sequence[tuple[str, Tensor]]
Groups = Sequence[tuple[Named, tuple[int, ...]]]

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def convert_module_to_f16(module: nn.Module) -> None:
    """Make a convolution float16; for `nn.Module.apply`, other modules stay as they are.

    The linear layers of attention count as convolutions, which they are in their networks.
    """
    for layer in _convolutions(module):
        layer.half()


def convert_module_to_f32(module: nn.Module) -> None:
    """Make a convolution float32 again."""
    for layer in _convolutions(module):
        layer.float()


def _convolutions(module: nn.Module) -> tuple[nn.Module, ...]:
    if isinstance(module, AttentionBlock):
        return module.qkv, module.proj
    return (module,) if isinstance(module, _CONVOLUTIONS) else ()


def get_param_groups_and_shapes(named_model_params: Iterable[tuple[str, Tensor]]) -> Groups:
    """Parameters in two groups, vectors and the rest, and the shape of each group's master."""
    named = list(named_model_params)
    vectors = [(name, param) for name, param in named if param.ndim <= 1]
    return [(vectors, (-1,)), ([(name, param) for name, param in named if param.ndim > 1], (1, -1))]


def make_master_params(param_groups_and_shapes: Groups) -> list[nn.Parameter]:
    """One flat float32 copy per group."""
    return [
        nn.Parameter(torch.cat([param.detach().float().flatten() for _, param in group]).view(shape))
        for group, shape in param_groups_and_shapes
    ]


def unflatten_master_params(param_group: Named, master_param: Tensor) -> list[Tensor]:
    """The parts of a flat master, in the shapes of its group."""
    parts = master_param.flatten().split([param.numel() for _, param in param_group])
    return [part.view_as(param) for part, (_, param) in zip(parts, param_group, strict=True)]


def model_grads_to_master_grads(param_groups_and_shapes: Groups, master_params: Sequence[Tensor]) -> None:
    """Copy the gradients of the parameters to their masters, in float32."""
    for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
        grads = torch.cat([param_grad_or_zeros(param).float().flatten() for _, param in group])
        master.grad = grads.view_as(master)


@torch.no_grad()
def master_params_to_model_params(param_groups_and_shapes: Groups, master_params: Sequence[Tensor]) -> None:
    """Copy the masters back into the parameters."""
    for master, (group, _) in zip(master_params, param_groups_and_shapes, strict=True):
        for (_, param), part in zip(group, unflatten_master_params(group, master), strict=True):
            param.copy_(part)


def master_params_to_state_dict(
    model: nn.Module, param_groups_and_shapes: Groups | None, master_params: Sequence[Tensor], use_fp16: bool
) -> dict[str, Tensor]:
    """The module's state dict, under its own names, with the masters' values."""
    with _lent(model, _named_masters(model, param_groups_and_shapes, master_params, use_fp16)):
        return dict(model.state_dict())


def state_dict_to_master_params(model: nn.Module, state_dict: Mapping[str, Tensor], use_fp16: bool) -> list[Tensor]:
    """The masters of a state dict; the module is left as it is.

    Raises:
        RuntimeError: names or shapes that are not the module's.
    """
    wide = {
        name: torch.empty_like(param, dtype=torch.float32 if param.dtype == torch.float16 else None)
        for name, param in model.named_parameters()
    }
    values = {name: value.detach() for name, value in wide.items()}
    with _lent(model, values):
        model.load_state_dict(dict(state_dict))
    if use_fp16:
        return list(make_master_params(get_param_groups_and_shapes(values.items())))
    return list(values.values())


def keep_their_shapes(opt: torch.optim.Optimizer, model: nn.Module) -> None:
    """Let an optimizer of a module's parameters, or of their masters, go on from OpenAI's files, and write such.

    A few weights have another shape in state dicts than here, with as many numbers. From now on what the optimizer
    holds of a parameter, such as its moments, has the parameter's shape when it is loaded, and that of the module's
    state dict when it is saved. What was loaded before is put right at once.
    """
    _fit_moments(opt)
    if opt not in _ADOPTED:
        _ADOPTED.add(opt)
        opt.register_load_state_dict_post_hook(_fit_moments)
        opt.register_state_dict_post_hook(partial(_write_shapes, model))


_ADOPTED: weakref.WeakSet[torch.optim.Optimizer] = weakref.WeakSet()


def _fit_moments(opt: torch.optim.Optimizer) -> None:
    for param, values in opt.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape != param.shape and value.numel() == param.numel() > 1:
                values[name] = value.view_as(param)


def _write_shapes(model: nn.Module, opt: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Give the moments in an optimizer's state dict the shapes of the module's state dict."""
    # A state dict's values are the parameters themselves, under other names.
    shapes = {value.data_ptr(): value.shape for value in model.state_dict().values()}
    params = [param for group in opt.param_groups for param in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for param, number in zip(params, numbers, strict=True):
        shape = shapes.get(param.data_ptr(), param.shape)
        if shape != param.shape and number in state["state"]:
            # The optimizer's own dict stays as it is.
            state["state"][number] = {
                name: value.view(shape) if isinstance(value, Tensor) and value.shape == param.shape else value
                for name, value in state["state"][number].items()
            }


def zero_master_grads(master_params: Iterable[Tensor]) -> None:
    """Drop the masters' gradients."""
    for param in master_params:
        param.grad = None


def zero_grad(model_params: Iterable[Tensor]) -> None:
    """Set the gradients of parameters to zero."""
    for param in model_params:
        if param.grad is not None:
            param.grad.detach_()
            param.grad.zero_()


def param_grad_or_zeros(param: Tensor) -> Tensor:
    """The gradient of a parameter; zeros where it has none."""
    return torch.zeros_like(param) if param.grad is None else param.grad.detach()


def check_overflow(value: float) -> bool:
    """Whether a number is infinite or NaN."""
    return not math.isfinite(value)


class MixedPrecisionTrainer:
    """Backward passes and optimizer steps, in float32 or, with `use_fp16`, in float16 with float32 masters.

    The gradients of a loss times 2^lg_loss_scale are kept from vanishing in float16. Where they overflow, the step is
    left out and the scale halved; each step taken lets it grow.

    Attributes:
        master_params: What the optimizer is to train.
        lg_loss_scale: log2 of the scale.

    Args:
        model: The network; with `use_fp16` it needs a `convert_to_fp16`, which is called here.
        use_fp16: As above. The loss must be float32: the networks here give the type of their input.
        fp16_scale_growth: Added to lg_loss_scale after each step.
        initial_lg_loss_scale: Its first value.

    Raises:
        TypeError: use_fp16 and a network that cannot be converted.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        use_fp16: bool = False,
        fp16_scale_growth: float = 1e-3,
        initial_lg_loss_scale: float = INITIAL_LOG_LOSS_SCALE,
    ) -> None:
        self.model = model
        self.use_fp16 = use_fp16
        self.fp16_scale_growth = fp16_scale_growth
        self.model_params = list(model.parameters())
        self.master_params: list[nn.Parameter] = self.model_params
        self.param_groups_and_shapes: Groups | None = None
        self.lg_loss_scale = initial_lg_loss_scale
        if use_fp16:
            convert: Any = getattr(model, "convert_to_fp16", None)
            if convert is None:
                raise TypeError(f"use_fp16 needs a network with convert_to_fp16, got a {type(model).__name__}")
            self.param_groups_and_shapes = self.grouped(model.named_parameters())
            self.master_params = make_master_params(self.param_groups_and_shapes)
            convert()

    @staticmethod
    def grouped(named_model_params: Iterable[tuple[str, Tensor]]) -> Groups:
        """The parameters of each master, and its shape."""
        return get_param_groups_and_shapes(named_model_params)

    def zero_grad(self) -> None:
        """Set the network's gradients to zero."""
        zero_grad(self.model_params)

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a loss to the network's, scaled where it is float16."""
        (loss * 2**self.lg_loss_scale if self.use_fp16 else loss).backward()

    def optimize(self, opt: torch.optim.Optimizer) -> bool:
        """Take a step of an optimizer of `master_params`; logs the norms. False where an overflow prevented it."""
        keep_their_shapes(opt, self.model)
        if self.param_groups_and_shapes is None:
            self._log_norms(*self._norms(1.0))
            opt.step()
            return True
        scale = 2**self.lg_loss_scale
        logger.logkv_mean("lg_loss_scale", self.lg_loss_scale)
        model_grads_to_master_grads(self.param_groups_and_shapes, self.master_params)
        grad_norm, param_norm = self._norms(scale)
        if check_overflow(grad_norm):
            self.lg_loss_scale -= 1
            logger.log(f"Found NaN, decreased lg_loss_scale to {self.lg_loss_scale}")
            zero_master_grads(self.master_params)
            return False
        self._log_norms(grad_norm, param_norm)
        for master in self.master_params:
            assert master.grad is not None
            master.grad.mul_(1 / scale)
        opt.step()
        zero_master_grads(self.master_params)
        master_params_to_model_params(self.param_groups_and_shapes, self.master_params)
        self.lg_loss_scale += self.fp16_scale_growth
        return True

    def _norms(self, grad_scale: float) -> tuple[float, float]:
        grads = [param.grad for param in self.master_params if param.grad is not None]
        params = [param.detach() for param in self.master_params]
        grad_norm, param_norm = (float(nn.utils.get_total_norm(values)) for values in (grads, params))
        return grad_norm / grad_scale, param_norm

    @staticmethod
    def _log_norms(grad_norm: float, param_norm: float) -> None:
        logger.logkv_mean("grad_norm", grad_norm)
        logger.logkv_mean("param_norm", param_norm)

    def named_master_params(self) -> dict[str, Tensor]:
        """The masters by the parameters' names and in their shapes and order."""
        return _named_masters(self.model, self.param_groups_and_shapes, self.master_params, self.use_fp16)

    def master_params_to_state_dict(self, master_params: Sequence[Tensor]) -> dict[str, Tensor]:
        """The network's state dict with the masters' values, float32."""
        return master_params_to_state_dict(self.model, self.param_groups_and_shapes, master_params, self.use_fp16)

    def state_dict_to_master_params(self, state_dict: Mapping[str, Tensor]) -> list[Tensor]:
        """The masters of a state dict."""
        return state_dict_to_master_params(self.model, state_dict, self.use_fp16)


def _named_masters(
    model: nn.Module, groups: Groups | None, master_params: Sequence[Tensor], use_fp16: bool
) -> dict[str, Tensor]:
    names = [name for name, _ in model.named_parameters()]
    if not use_fp16:
        return dict(zip(names, (param.detach() for param in master_params), strict=True))
    if groups is None:
        raise ValueError("with use_fp16 the masters are flat, and param_groups_and_shapes must say what is in them")
    found: dict[str, Tensor] = {}
    for master, (group, _) in zip(master_params, groups, strict=True):
        parts = unflatten_master_params(group, master.detach())
        found |= {name: part for (name, _), part in zip(group, parts, strict=True)}
    return {name: found[name] for name in names}


@contextmanager
def _lent(model: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Other values in a module's parameters while the block lasts.

    A state dict's names are the module's own affair (here they are OpenAI's, not those of the parameters), so that
    values are put under them, and read from under them, by the module itself.
    """
    kept = {name: param.data for name, param in model.named_parameters()}
    try:
        for name, param in model.named_parameters():
            param.data = values[name]
        yield
    finally:
        for name, param in model.named_parameters():
            param.data = kept[name]
