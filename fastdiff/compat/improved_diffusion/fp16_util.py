"""Training in float16 under improved-diffusion's names: one flat float32 master of all parameters."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor, nn

from fastdiff.compat.guided_diffusion import fp16_util as guided
from fastdiff.compat.guided_diffusion.fp16_util import convert_module_to_f16, convert_module_to_f32, zero_grad

__all__ = [
    "MixedPrecisionTrainer",
    "convert_module_to_f16",
    "convert_module_to_f32",
    "make_master_params",
    "master_params_to_model_params",
    "model_grads_to_master_grads",
    "unflatten_master_params",
    "zero_grad",
]


def make_master_params(model_params: Iterable[Tensor]) -> list[nn.Parameter]:
    """A list of one flat float32 copy of all parameters."""
    return guided.make_master_params(_groups(model_params))


def model_grads_to_master_grads(model_params: Iterable[Tensor], master_params: Sequence[Tensor]) -> None:
    """Copy the gradients of the parameters to the master, in float32."""
    guided.model_grads_to_master_grads(_groups(model_params), master_params)


def master_params_to_model_params(model_params: Iterable[Tensor], master_params: Sequence[Tensor]) -> None:
    """Copy the master back into the parameters."""
    guided.master_params_to_model_params(_groups(model_params), master_params)


def unflatten_master_params(model_params: Iterable[Tensor], master_params: Sequence[Tensor]) -> list[Tensor]:
    """The parts of the master, in the shapes of the parameters."""
    ((group, _),) = _groups(model_params)
    return guided.unflatten_master_params(group, master_params[0].detach())


class MixedPrecisionTrainer(guided.MixedPrecisionTrainer):
    """As guided-diffusion's, with one master, as optimizer files of improved-diffusion's have it."""

    @staticmethod
    def grouped(named_model_params: Iterable[tuple[str, Tensor]]) -> guided.Groups:
        """All parameters in one group."""
        return [(list(named_model_params), (-1,))]


def _groups(model_params: Iterable[Tensor]) -> guided.Groups:
    return [([("", param) for param in model_params], (-1,))]
