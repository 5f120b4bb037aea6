"""Known pixels: kept bit for bit, and refused where they do not fit."""

import pytest
import torch

import fastdiff as fd
from fastdiff import samplers
from fastdiff.sampling import editing
from fastdiff.sampling.known_pixels import Known
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT32_RUN

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(40))
GAUSSIAN = gaussian_network(DIFFUSION, 0.25)
X = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("runner", ["eager", "native"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32, torch.int64])
def test_inpaint_keeps_known_pixels_bit_for_bit(net, runner, dtype):
    mask = torch.zeros(3, 1, 8, 8, dtype=torch.bool)
    mask[0, :, :3], mask[1, :, :, 5:], mask[2, 0, 4, 4] = True, True, True
    filled = editing.inpaint(net, DIFFUSION, X, mask.to(dtype), steps=8, jump_length=2, jump_repeats=2, runner=runner)
    assert torch.equal(filled[mask], X[mask])
    assert not torch.isclose(filled[~mask], X[~mask]).any()
    assert torch.isfinite(filled).all()
    everything = editing.inpaint(net, DIFFUSION, X, torch.ones(8, 8), steps=4, runner=runner)
    assert torch.equal(everything, X)


def test_inpaint_runners_agree(net):
    mask = torch.zeros(8, 8)
    mask[2:6] = 1
    both = [
        editing.inpaint(net, DIFFUSION, X, mask, steps=8, jump_length=2, jump_repeats=2, runner=runner)
        for runner in ("eager", "native")
    ]
    torch.testing.assert_close(both[0], both[1], rtol=FLOAT32_RUN, atol=FLOAT32_RUN)


HALF = torch.zeros(8, 8)


def test_inpaint_refuses_masks_that_are_no_tensors():
    with pytest.raises(TypeError, match="mask"):
        editing.inpaint(GAUSSIAN, DIFFUSION, X, [[1]])


def test_sample_refuses_known_pixels_that_do_not_fit():
    table = samplers.ddpm(DIFFUSION, 4)
    shape = (1, 1, 8, 8)
    with pytest.raises(ValueError, match="known image"):
        fd.sample(GAUSSIAN, table, shape=shape, known=Known(X, HALF), progress=False)
    without_levels = fd.CoefficientTable(table.columns)
    with pytest.raises(ValueError, match="which levels"):
        fd.sample(GAUSSIAN, without_levels, shape=shape, known=Known(X[:1], HALF), progress=False)
