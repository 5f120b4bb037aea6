"""The Triton kernels of the losses against `fastdiff.ops.reference.bound` in float64, gradients included."""

import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.calls import BoundLossBackwardCall, BoundLossCall, MseBackwardCall
from fastdiff.ops._dispatch import dispatch
from fastdiff.ops.reference import bound as losses
from fastdiff.ops.reference.bound import BoundTable
from support.tolerances import FLOAT32, FLOAT32_DEEP, FLOAT32_SUM
from support.triton_cases import DTYPES, FORMATS, ROUNDING, images

SHAPES = [(1, 1, 1, 1), (2, 3, 5, 7), (2, 4, 4, 4), (3, 3, 19, 19)]
T = 12


def diffusion(prediction="eps", variance="learned_range"):
    return Diffusion(NoiseSchedule.linear(T, 1e-3, 0.3), prediction, variance)


def problem(shape, device, dtype="float32", layout="nchw", process=None, times=(0, 5, 11)):
    """Output, target, x0 on the grid of 256 values, x_t near it, t."""
    process = process or diffusion()
    batch, channels, *size = shape
    width = 2 * channels if process.learned_variance else channels
    t = torch.tensor([times[i % len(times)] for i in range(batch)], device=device)
    x0 = torch.round((images(shape, device, seed=1) + 1) * 127.5) / 127.5 - 1
    # The first, the last and an inner bin.
    x0.view(batch, -1)[:, :1], x0.view(batch, -1)[:, -1:] = -1.0, 1.0
    rows = torch.tensor(process.noising_table(), device=device)[t][:, :, None, None, None]
    noise = images(shape, device, seed=2)
    x_t = (rows[:, 0] * x0 + rows[:, 1] * noise).float()
    output = torch.cat([noise * 0.9, images((batch, width - channels, *size), device, seed=3)], dim=1)
    target = noise
    move = [v.to(DTYPES[dtype]).contiguous(memory_format=FORMATS[layout]) for v in (output, target, x0, x_t)]
    return *move, t


def exact(output, target, x0, x_t, t, process, clip=None, detach=False, decoder="discrete", levels=256):
    """(mse, bound) by fastdiff.ops.reference.bound and autograd, float64."""
    table = BoundTable.build(process, output.device, torch.float32).rows().double()
    table = BoundTable.from_rows(table, process.learned_variance)
    m, values = output.chunk(2, dim=1) if process.learned_variance else (output, None)
    x0, x_t, target = x0.double(), x_t.double(), target.double()
    prediction = table.x0(x_t, t, m.detach() if detach else m)
    prediction = prediction if clip is None else prediction.clamp(-clip, clip)
    log_variance = table.log_variance(t, x_t, values)
    bound = losses.variational_terms(x0, t, prediction, log_variance, table, decoder=decoder, levels=levels)
    return losses.mse(m, target), bound


def assert_close(ours, expected, rounding=0.0, plain=None):
    """Within a rounding to the storage type, float32 roundings of the largest, and twice plain PyTorch's error."""
    largest = float(expected.abs().max()) if expected.numel() else 0.0
    theirs = 0.0 if plain is None else float((plain.double() - expected).abs().max())
    bound = rounding * expected.abs() + 5 * FLOAT32 * largest + 2 * theirs + 1e-9
    error = (ours.double() - expected).abs()
    assert bool((error <= bound).all()), (float(error.max()), largest)


def run_and_check(tensors, process, *, clip=None, detach=False, decoder="discrete", levels=256):
    output, target, x0, x_t, t = tensors
    table = BoundTable.build(process, output.device).rows()
    arguments = (target, x0, x_t, t, table, clip, process.learned_variance, detach, decoder, levels)
    found = dispatch(BoundLossCall(output, *arguments), "triton")
    wide = output.double().requires_grad_()
    expected = exact(wide, target, x0, x_t, t, process, clip, detach, decoder, levels)
    plain = dispatch(BoundLossCall(output, *arguments), "reference")
    for ours, theirs, in_float32 in zip(found, expected, plain, strict=True):
        assert ours.dtype == torch.float32
        assert_close(ours, theirs.detach(), plain=in_float32)

    grads = torch.linspace(0.5, 2, output.shape[0], device=output.device), -found[1] * 0 + 0.7
    grad = dispatch(BoundLossBackwardCall(output, *grads, *arguments), "triton")
    loss = (grads[0].double() * expected[0]).sum() + (grads[1].double() * expected[1]).sum()
    (exact_grad,) = torch.autograd.grad(loss, wide)
    assert grad.dtype == output.dtype
    assert grad.stride() == output.stride()
    rounding = ROUNDING[str(output.dtype).removeprefix("torch.")]
    plain = dispatch(BoundLossBackwardCall(output.float(), *grads, *arguments), "reference")
    # Per sample: the decoder's gradients are far larger than those of other timesteps.
    for ours, theirs, in_float32 in zip(grad, exact_grad, plain, strict=True):
        assert_close(ours, theirs, rounding, in_float32)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("detach", [True, False])
def test_losses_match_the_reference(device, shape, layout, detach):
    process = diffusion()
    run_and_check(problem(shape, device, layout=layout, process=process), process, detach=detach)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bound_terms_are_the_bound_and_the_error_of_x0(device, shape, clip, layout):
    process = diffusion()
    output, _, x0, x_t, t = problem(shape, device, layout=layout, process=process)
    table = BoundTable.build(process, device)
    bound, x0_mse = ops.bound_terms(
        output, x0, x_t, t, table.rows(), learned_variance=True, clip=clip, implementation="triton"
    )
    wide = exact(output.double(), x_t, x0, x_t, t, process, clip)[1]
    mean = BoundTable.from_rows(table.rows().double(), True).x0(x_t.double(), t, output.double().chunk(2, dim=1)[0])
    mean = mean if clip is None else mean.clamp(-clip, clip)
    assert torch.allclose(bound.double(), wide, rtol=FLOAT32_DEEP)
    assert torch.allclose(x0_mse.double(), losses.mse(mean, x0.double()), rtol=FLOAT32_SUM)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_losses_in_16_bits(device, dtype, layout):
    process = diffusion()
    run_and_check(problem((3, 3, 5, 7), device, dtype, layout, process), process)


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_losses_of_every_process(device, prediction, variance, clip):
    process = diffusion(prediction, variance)
    tensors = problem((3, 3, 5, 4), device, process=process)
    if variance == "learned":
        # A raw log-variance: around -3.
        tensors[0][:, 3:].sub_(3)
    run_and_check(tensors, process, clip=clip)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("decoder", ["discrete", "gaussian"])
def test_losses_of_every_decoder(device, decoder, levels):
    process = diffusion()
    tensors = problem((2, 3, 5, 7), device, process=process, times=(0,))
    run_and_check(tensors, process, decoder=decoder, levels=levels)


@pytest.mark.parametrize("log_variance", [-12.0, -9.0, -4.0, 0.0, 4.0])
@pytest.mark.parametrize("offset", [0.0, 0.05, 0.5])
def test_losses_of_bins_near_and_far_narrow_and_wide(device, log_variance, offset):
    """The decoder with a raw log-variance, so bins of 3 deviations down to 1e-3, up to 200 from the mean."""
    process = diffusion("x0", "learned")
    x0 = torch.linspace(-1, 1, 256, device=device).reshape(1, 1, 16, 16)
    output = torch.cat([x0 + offset, torch.full_like(x0, log_variance)], dim=1)
    t = torch.zeros(1, dtype=torch.int64, device=device)
    run_and_check((output, x0, x0, x0, t), process)


def test_losses_read_views_and_other_layouts(device):
    process = diffusion()
    output, target, x0, x_t, t = problem((2, 3, 5, 7), device, process=process)
    other = (target.contiguous(memory_format=torch.channels_last), x0[:, :, :, :], x_t.flip(0).flip(0))
    run_and_check((output.contiguous(memory_format=torch.channels_last), *other, t), process)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_mse_matches_float64(device, shape, dtype, layout):
    output, target = images(shape, device, DTYPES[dtype], layout), images(shape, device, seed=1)
    loss = ops.mse(output, target, implementation="triton")
    wide = output.double().requires_grad_()
    expected = losses.mse(wide, target.double())
    assert_close(loss, expected.detach())
    grad = torch.linspace(0.5, 2, shape[0], device=device)
    found = dispatch(MseBackwardCall(grad, output, target), "triton")
    assert found.stride() == output.stride()
    assert_close(found, torch.autograd.grad(expected, wide, grad.double())[0], ROUNDING[dtype])


@pytest.mark.parametrize("layout", FORMATS)
def test_losses_give_nan_for_a_timestep_out_of_range(device, layout):
    process = diffusion()
    output, target, x0, x_t, _ = problem((4, 3, 3, 4), device, layout=layout, process=process)
    t = torch.tensor([-1, 3, T, 1 << 60], device=device)
    table = BoundTable.build(process, device).rows()
    arguments = (target, x0, x_t, t, table, None, True, True, "discrete", 256)
    simple, bound = dispatch(BoundLossCall(output, *arguments), "triton")
    assert simple.isfinite().all()
    assert bound.isnan().tolist() == [True, False, True, True]


@pytest.mark.parametrize("shape", [(0, 6, 4, 4), (2, 6, 0, 4)], ids=str)
def test_losses_of_nothing(device, shape):
    process = diffusion()
    output = images(shape, device)
    half = images((shape[0], 3, *shape[2:]), device)
    table = BoundTable.build(process, device).rows()
    t = torch.zeros(shape[0], dtype=torch.int64, device=device)
    arguments = (half, half, half, t, table, None, True, True, "discrete", 256)
    simple, bound = dispatch(BoundLossCall(output, *arguments), "triton")
    assert simple.shape == bound.shape == shape[:1]
    # A mean over nothing, as in PyTorch.
    assert simple.isnan().all()
    assert bound.isnan().all()
    grad = dispatch(BoundLossBackwardCall(output, simple, bound, *arguments), "triton")
    assert grad.shape == shape


def test_losses_refuse_float64(device):
    x = images((1, 2, 2, 2), device, torch.float64)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.mse(x, x, implementation="triton")
