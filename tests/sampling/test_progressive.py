"""Sampling that keeps the predicted image of chosen rows."""

import pytest
import torch

import fastdiff as fd
from fastdiff import samplers
from fastdiff.sampling.progressive import progressive
from support.gaussian_networks import gaussian_network

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(40))


def test_progressive_keeps_the_predictions_of_chosen_rows(net):
    table = samplers.ddim(DIFFUSION, 12)
    seen = {}
    fd.sample(
        net, table, shape=(2, 1, 8, 8), seed=3, progress=False,
        callback=lambda step: seen.update({step.row: step.prediction.clone()}),
    )  # fmt: skip
    found = progressive(net, table, shape=(2, 1, 8, 8), seed=3, rows=4)
    assert found.rows == [0, 4, 7, 11]
    assert found.times == [float(table["t"][row]) for row in found.rows]
    for row, preview in zip(found.rows, found.previews, strict=True):
        assert torch.equal(preview, seen[row])
    # DDIM's last row is the predicted image itself.
    torch.testing.assert_close(found.previews[-1], found.samples, rtol=0, atol=1e-6)
    assert progressive(net, table, shape=(1, 1, 8, 8), rows=[11, 2]).rows == [2, 11]
    assert len(progressive(net, table, shape=(1, 1, 8, 8), rows=100).rows) == 12


@pytest.mark.parametrize(
    ("sampler", "rows", "message"),
    [("ddim", [4], "rows"), ("ddim", 0, "rows"), ("dpm_solver", 8, "predicts noise")],
)
def test_progressive_refuses(sampler, rows, message):
    table = samplers.build(sampler, DIFFUSION, 4)
    with pytest.raises(ValueError, match=message):
        progressive(gaussian_network(DIFFUSION, 0.25), table, shape=(1, 1, 8, 8), rows=rows)
