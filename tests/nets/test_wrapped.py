"""Networks in PyTorch's wrappers: found, named and refused in one place."""

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel
from torch.optim.swa_utils import AveragedModel

from fastdiff.compat.guided_diffusion.unet import SuperResModel, UNetModel
from fastdiff.nets.wrapped import own_tensors, plain_names, plain_network
from support.networks import small_unet


def compiled(network):
    return torch.compile(network, backend="eager")


WRAPPERS = {
    "compiled": compiled,
    "parallel": DataParallel,
    "averaged": AveragedModel,
    "compiled in parallel": lambda network: DataParallel(compiled(network)),
    "parallel in compiled": lambda network: compiled(DataParallel(network)),
    "compiled twice, averaged": lambda network: AveragedModel(compiled(DataParallel(network))),
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_plain_network_and_plain_names_take_wrappers_off(name):
    network = small_unet()
    wrapped = WRAPPERS[name](network)
    inner = plain_network(wrapped)
    # An `AveragedModel` holds a copy.
    assert type(inner) is type(network)
    assert "averaged" in name or inner is network
    assert list(plain_names(wrapped.state_dict())) == list(network.state_dict())


def test_plain_network_leaves_a_child_of_that_name_alone():
    class Owner(nn.Module):
        def __init__(self):
            super().__init__()
            self.module = nn.Linear(1, 1)

    owner = Owner()
    assert plain_network(owner) is owner


def test_plain_names_take_prefixes_out_of_the_middle_and_refuse_a_clash():
    named = {"module.input_blocks.0._orig_mod.0.weight": 1, "_orig_mod.module.conv_out.bias": 2}
    assert plain_names(named) == {"input_blocks.0.0.weight": 1, "conv_out.bias": 2}
    with pytest.raises(ValueError, match=r"two tensors are conv_out\.bias"):
        plain_names({"module.conv_out.bias": 1, "conv_out.bias": 2})


def test_own_tensors_have_the_names_of_the_configuration():
    settings = {"image_size": 8, "in_channels": 1, "model_channels": 32, "out_channels": 1, "num_res_blocks": 1}
    settings |= {"attention_resolutions": (2,), "channel_mult": (1, 2)}
    network = UNetModel(**settings)
    found = own_tensors(network)
    assert list(found) == [name for name, _ in network.named_parameters()]
    assert all(found[name] is not None and found[name].shape == p.shape for name, p in network.named_parameters())
    with pytest.raises(ValueError, match="SuperResModel computes more than its configuration"):
        own_tensors(SuperResModel(**settings))


def test_own_tensors_refuse_a_network_that_was_altered():
    network = small_unet()
    network.further = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"further\.weight is surplus"):
        own_tensors(network)
    network = small_unet()
    nn.utils.parametrizations.weight_norm(network.conv_out)
    with pytest.raises(ValueError, match=r"conv_out\.weight is missing"):
        own_tensors(network)
    network = small_unet()
    network.conv_out = nn.Conv2d(8, 3, 3, padding=1)
    with pytest.raises(ValueError, match=r"conv_out\.weight is \[3, 8, 3, 3\] in place of \[1, 8, 3, 3\]"):
        own_tensors(network)
