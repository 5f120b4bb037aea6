"""The Triton kernel of dropout: the mask of the noise contract bit for bit, from a seed in memory."""

import pytest
import torch

from fastdiff import ops
from fastdiff.calls import DropoutCall
from fastdiff.kernels.dropout import launch_dropout
from fastdiff.ops.reference import dropout as reference
from support.triton_cases import DTYPES, FORMATS, assert_near, images

SEEDS = {0: 0.0, 5: 0.1, -1: 0.5, -(2**62) - 12345: 0.97}
# Less than a tile, one with a tail, several.
SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (3, 70, 11, 9), (4, 130), (1, 5000), (7,)]


def run_and_check(x, seed, p, ids=None):
    seed_tensor = torch.tensor([seed], device=x.device)
    ids = None if ids is None else torch.tensor(ids, device=x.device)
    y = ops.dropout(x, p, seed_tensor, sample_ids=ids, implementation="triton")
    exact = reference.dropout(DropoutCall(x.double(), seed_tensor, p, ids))
    assert torch.equal(y == 0, exact.to(y.dtype) == 0)
    assert y.stride() == torch.empty(x.shape).contiguous(memory_format=ops.memory_format(x)).stride()
    assert_near(y, exact)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout_draws_the_mask_of_the_contract(device, shape, layout):
    run_and_check(images(shape, device, layout=layout), *list(SEEDS.items())[-1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", SEEDS)
def test_dropout_in_every_type(device, dtype, seed):
    run_and_check(images((2, 3, 5, 7), device, DTYPES[dtype], "nhwc"), seed, SEEDS[seed], [2**40 + 5, 3])


def test_dropout_of_nothing_and_of_everything(device):
    x, seed = images((2, 3, 4, 4), device), torch.tensor([1], device=device)
    assert torch.equal(launch_dropout(DropoutCall(x, seed, 0.0, None)), x)
    nan = torch.full_like(x, torch.nan)
    assert torch.equal(launch_dropout(DropoutCall(nan, seed, 1.0, None)), torch.zeros_like(x))
    assert launch_dropout(DropoutCall(x[:0], seed, 0.5, None)).shape == (0, 3, 4, 4)


def test_dropout_does_not_let_dropped_values_through(device):
    x = torch.full((1, 1000), torch.inf, device=device)
    y = launch_dropout(DropoutCall(x, torch.tensor([3], device=device), 0.5, None))
    assert not bool(y.isnan().any())
    assert 0.4 < float((y == 0).float().mean()) < 0.6


def test_dropout_does_not_read_its_seed_on_the_host(device, monkeypatch):
    x, seed = images((2, 3, 4, 4), device), torch.tensor([1], device=device)
    for name in ("__int__", "item", "tolist"):
        monkeypatch.setattr(torch.Tensor, name, lambda *_: pytest.fail("the host waits for the device"))
    launch_dropout(DropoutCall(x, seed, 0.5, None))


def test_dropout_reads_a_view(device):
    x, seed = images((2, 6, 5, 8), device)[:, ::2, :, 1:7], torch.tensor([7, 9], device=device)[1:]
    ids = torch.tensor([4, 0, 6, 0], device=device)[::2]
    y = launch_dropout(DropoutCall(x, seed, 0.3, ids))
    assert torch.equal(y, launch_dropout(DropoutCall(x.contiguous(), seed.clone(), 0.3, ids.clone())))


def test_dropout_refuses_float64(device):
    x = images((1, 1, 2, 2), device, torch.float64)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.dropout(x, 0.5, torch.tensor([1], device=device), implementation="triton")
