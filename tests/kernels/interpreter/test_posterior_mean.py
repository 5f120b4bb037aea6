"""The Triton kernel of posterior_mean against the reference in float64, on the same rounded coefficients."""

import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.calls import PosteriorMeanCall
from fastdiff.ops.reference import posterior_mean as reference
from support.triton_cases import DTYPES, FORMATS, SHAPES, assert_near, images

NUM_TIMESTEPS = 50


def table_of(prediction, device):
    diffusion = Diffusion(NoiseSchedule.linear(NUM_TIMESTEPS), prediction)
    return torch.tensor(diffusion.posterior_table(), dtype=torch.float32, device=device)


def run_and_check(x_t, output, table, clip=None):
    t = torch.arange(x_t.shape[0], device=x_t.device) * 7 % NUM_TIMESTEPS
    mean = ops.posterior_mean(x_t, output, t, table, clip=clip, implementation="triton")
    assert mean.stride() == torch.empty(x_t.shape).contiguous(memory_format=ops.memory_format(x_t)).stride()
    exact = reference.posterior_mean(PosteriorMeanCall(x_t.double(), output.double(), t, table.double(), clip))
    assert_near(mean, exact)
    return mean


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_posterior_mean_matches_the_reference(device, shape, layout):
    x_t, output = images(shape, device, layout=layout), images(shape, device, layout=layout, seed=1)
    run_and_check(x_t, output, table_of("eps", device))


@pytest.mark.parametrize("clip", [None, 0.3])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
@pytest.mark.parametrize(("dtype", "output_dtype"), [("float32",) * 2, ("bfloat16",) * 2, ("float32", "bfloat16")])
def test_posterior_mean_of_every_prediction_and_type(device, dtype, output_dtype, prediction, clip):
    x_t = images((3, 3, 5, 7), device, DTYPES[dtype])
    # The output in another layout is copied.
    output = images(x_t.shape, device, DTYPES[output_dtype], "nhwc", seed=1)
    run_and_check(x_t, output, table_of(prediction, device), clip)


def test_posterior_mean_of_a_view_that_is_not_dense(device):
    x_t = images((2, 6, 5, 8), device)[:, ::2, :, 1:7]
    run_and_check(x_t, images((2, 6, 5, 6), device, seed=1)[:, :3], table_of("v", device), 1.0)


@pytest.mark.parametrize("layout", FORMATS)
def test_posterior_mean_gives_nan_for_a_timestep_out_of_range(device, layout):
    x_t = images((5, 3, 3, 4), device, layout=layout)
    t = torch.tensor([0, -1, NUM_TIMESTEPS - 1, NUM_TIMESTEPS, 1 << 60], device=device)
    table = table_of("eps", device)
    found = ops.posterior_mean(x_t, x_t, t, table, clip=1.0, implementation="triton")
    good = ops.posterior_mean(x_t, x_t, t.clamp(0, NUM_TIMESTEPS - 1), table, clip=1.0, implementation="triton")
    assert found[[1, 3, 4]].isnan().all()
    assert torch.equal(found[[0, 2]], good[[0, 2]])


def test_posterior_mean_does_not_hide_nan(device):
    x_t = images((1, 1, 2, 2), device)
    x_t[0, 0, 0, 0] = torch.nan
    table = table_of("eps", device)
    found = ops.posterior_mean(x_t, x_t, torch.tensor([3], device=device), table, clip=1.0, implementation="triton")
    assert torch.equal(found.isnan(), x_t.isnan())


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_posterior_mean_of_nothing(device, shape):
    x_t = images(shape, device, torch.float16)
    t = torch.zeros(shape[0], dtype=torch.int64, device=device)
    mean = ops.posterior_mean(x_t, x_t, t, table_of("eps", device), implementation="triton")
    assert (mean.shape, mean.dtype) == (shape, torch.float16)


def test_posterior_mean_refuses_float64_and_gradients(device):
    x_t = images((1, 1, 2, 2), device, torch.float64)
    t, table = torch.tensor([0], device=device), table_of("eps", device)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.posterior_mean(x_t, x_t, t, table.double(), implementation="triton")
    if device.type == "cpu":
        x_t = x_t.float().requires_grad_()
        with pytest.raises(RuntimeError, match="no gradient under Triton's interpreter"):
            ops.posterior_mean(x_t, x_t, t, table, implementation="triton")
        with torch.no_grad():
            ops.posterior_mean(x_t, x_t, t, table, implementation="triton")
