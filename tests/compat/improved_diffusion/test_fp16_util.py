"""improved-diffusion's mixed precision: one flat master."""

import torch
from torch import nn

from fastdiff.compat.improved_diffusion import fp16_util


def test_the_master_is_all_parameters_in_their_order():
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.Linear(2, 1)).half()
    params = list(model.parameters())
    masters = fp16_util.make_master_params(params)
    (master,) = masters
    assert torch.equal(master, torch.cat([param.float().flatten() for param in params]))
    assert master.dtype == torch.float32
    for param in params:
        param.grad = torch.ones_like(param)
    fp16_util.model_grads_to_master_grads(params, masters)
    assert master.grad.tolist() == [1.0] * 7
    with torch.no_grad():
        master.copy_(torch.arange(7.0))
    fp16_util.master_params_to_model_params(iter(params), masters)
    assert model[1].bias.item() == 6
    parts = fp16_util.unflatten_master_params(params, masters)
    assert [part.shape for part in parts] == [param.shape for param in params]
    assert parts[1].tolist() == [2.0, 3.0]
