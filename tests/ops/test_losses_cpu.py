"""The losses' C++ kernels: against fastdiff.ops.reference.bound in float64, at odd shapes, on every instruction set.

The decoder's probabilities are held to mpmath, of which a value is one sample of one element here.
"""

import math

import mpmath
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.ops.reference import bound as losses
from fastdiff.ops.reference.bound import BoundTable
from support.exact_bins import exact_bin, grid
from support.tolerances import FLOAT32, FLOAT32_DEEP, FLOAT32_FEW, FLOAT64

T = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = [
    *((3, 1, 1, 1), (3, 3, 1, 1), (3, 1, 7, 9), (4, 3, 5, 7), (3, 3, 32, 32), (2, 17, 31, 33)),
    *((1, 63, 1, 127), (3, 1025, 2, 1), (0, 3, 4, 4), (3, 63), (2, 1023), (3, 5, 205)),
]
# Of one number against float64, over the largest of its sample: the exponential of a log-variance, rounded to float32.
RELATIVE = {"float32": 5 * FLOAT32, "bfloat16": 5 * FLOAT32, "float16": 5 * FLOAT32, "float64": 1e-11}
ROUNDING = {"float32": 0.0, "bfloat16": 2**-8, "float16": 2**-10, "float64": 0.0}


def problem(shape, dtype, layout, learned=True, times=(0, 5, 11)):
    """Output, target, x0, x_t and t, of a process whose bounds are of order 1."""
    diffusion = Diffusion(NoiseSchedule.linear(T, 1e-3, 0.3), "eps", "learned_range" if learned else "fixed_large")
    generator = torch.Generator().manual_seed(sum(shape))
    noise, base, values = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(3))
    x0 = torch.round((torch.tanh(2 * base) + 1) * 127.5) / 127.5 - 1
    t = torch.tensor([times[i % len(times)] for i in range(shape[0])], dtype=torch.int64)
    rows = torch.tensor(diffusion.noising_table())[t].reshape(-1, 4, *[1] * (len(shape) - 1))
    output = torch.cat([noise * 0.9, values * 0.3], dim=1) if learned else noise * 0.9
    tensors = [v.to(DTYPES[dtype]) for v in (output, noise, x0, rows[:, 0] * x0 + rows[:, 1] * noise)]
    if len(shape) == 4:
        tensors = [v.contiguous(memory_format=FORMATS[layout]) for v in tensors]
    table = BoundTable.build(diffusion, dtype=torch.float64 if dtype == "float64" else torch.float32)
    return (*tensors, t), table


def exact(output, target, x0, x_t, t, table, clip=None, detach=False, decoder="discrete", levels=256):
    """(mse, bound, squared error of x_0) by fastdiff.ops.reference.bound, of a float64 output; the rest is widened."""
    table = BoundTable.from_rows(table.rows().double(), table.learned_variance)
    m, values = output.chunk(2, dim=1) if table.learned_variance else (output, None)
    target, x0, x_t = target.double(), x0.double(), x_t.double()
    mean = table.x0(x_t, t, m.detach() if detach else m)
    mean = mean if clip is None else mean.clamp(-clip, clip)
    log_variance = table.log_variance(t, x_t, values)
    bound = losses.variational_terms(x0, t, mean, log_variance, table, decoder=decoder, levels=levels)
    return losses.mse(m, target), bound, losses.mse(mean, x0)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_losses_match_float64(shape, dtype, layout):
    for learned, clip, detach, decoder in (
        (True, None, True, "discrete"),
        (True, 0.7, False, "gaussian"),
        (False, 0.7, False, "discrete"),
        (False, None, False, "gaussian"),
    ):
        (output, target, x0, x_t, t), table = problem(shape, dtype, layout, learned)
        wide = output.double().requires_grad_()
        expected = exact(wide, target, x0, x_t, t, table, clip, detach, decoder)
        options = (clip, learned, detach, decoder, 256)
        given = output.requires_grad_()
        arguments = (target, x0, x_t, t, table.rows(), *options)
        simple, bound = torch.ops.fastdiff.bound_loss(given, *arguments)
        assert bound.dtype == simple.dtype == table.px.dtype
        terms = torch.ops.fastdiff.bound_terms(output.detach(), *arguments[1:7], decoder, 256)
        assert torch.equal(terms[0], bound)
        for ours, theirs in zip((simple, bound, terms[1]), expected, strict=True):
            assert torch.allclose(ours.double(), theirs, rtol=RELATIVE[dtype], atol=RELATIVE[dtype])

        weights = torch.linspace(0.5, 2, shape[0], dtype=torch.float64)
        sides = (((a + 0.3 * b) * weights.to(a.dtype)).sum() for a, b in ((simple, bound), expected[:2]))
        (grad,), (exact_grad,) = (torch.autograd.grad(side, v) for side, v in zip(sides, (given, wide), strict=True))
        assert grad.dtype == output.dtype
        assert grad.stride() == output.stride() or not grad.numel()
        for ours, theirs in zip(grad.double(), exact_grad, strict=True):
            # float16's gradients of large samples lie below its normal numbers.
            largest = RELATIVE[dtype] * theirs.abs().max() + (2**-25 if dtype == "float16" else 0)
            assert bool(((ours - theirs).abs() <= ROUNDING[dtype] * theirs.abs() + largest).all())


def one_by_one(x, mean, log_std, levels):
    """Log-probabilities in nats of values [n] under means and log_stds, by the op, with derivatives by both."""
    dtype = x.dtype
    # x_0 = m, and the second half is the log-variance.
    rows = torch.tensor([[0.0, 0.0, -1.0, 1.0, 0.0, 1.0]], dtype=dtype)
    output = torch.stack([mean, 2 * log_std], dim=1).requires_grad_()
    zeros, t = torch.zeros_like(x)[:, None], torch.zeros(len(x), dtype=torch.int64)
    bits = ops.bound_loss(output, x[:, None], zeros, t, rows, learned_variance=True, levels=levels)
    logs = -math.log(2) * bits
    (grad,) = torch.autograd.grad(logs.sum(), output)
    return logs.detach(), grad[:, 0], 2 * grad[:, 1]


@pytest.mark.parametrize("mean", [0.0, 1 / 255, 2 / 255, 0.30001, 1.0, -3.0, 100.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decoder_probabilities_sum_to_one(dtype, mean):
    for levels in (2, 17, 256):
        for std in (1e-4, 1e-3, 0.01, 0.1, 1.0, 30.0):
            x = grid(levels, DTYPES[dtype])
            logs, _, _ = one_by_one(x, torch.full_like(x, mean), torch.full_like(x, math.log(std)), levels)
            assert abs(float(logs.double().exp().sum()) - 1) < (FLOAT32_FEW if dtype == "float32" else FLOAT64)


@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_decoder_matches_fifty_digits(dtype, levels):
    """Log-probability and derivatives of bins near and far, narrow and wide, inside and at the ends."""
    chosen = sorted({0, 1, levels // 3, levels // 2, levels - 1})
    for log_std in (-9.2, -5.0, -3.0, -1.0, 0.0, 3.0):
        for mean in (0.0, 0.3, -1.0, 0.9371, -40.0):
            x = grid(levels, DTYPES[dtype])[chosen]
            means, log_stds = torch.full_like(x, mean), torch.full_like(x, log_std)
            found = torch.stack(one_by_one(x, means, log_stds, levels), dim=1)
            std = mpmath.exp(mpmath.mpf(log_stds[0].item()))
            for i, k in enumerate(chosen):
                expected = exact_bin(k, levels, means[0].item(), std)
                for ours, theirs in zip(found[i].tolist(), expected, strict=True):
                    # A quotient of differences of probabilities that nearly agree, in the derivatives.
                    relative = 1e-6 if dtype == "float32" else 1e-9
                    assert ours == pytest.approx(float(theirs), rel=relative, abs=relative)


def test_losses_stay_finite_at_absurd_means_and_scales():
    for dtype in (torch.float32, torch.float64):
        for levels in (2, 256):
            means = torch.tensor([0.0, 1.0, -1.0, 1e3, -1e4, 1e6], dtype=dtype)
            for log_std in (-20.0, -9.0, 0.0, 9.0, 20.0):
                for value in (-1.0, 1.0, grid(levels, dtype)[levels // 3].item()):
                    x = torch.full_like(means, value)
                    found = one_by_one(x, means, torch.full_like(x, log_std), levels)
                    assert all(bool(v.isfinite().all()) for v in found)


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_do_not_hide_nan(dtype, place):
    """In the output's halves, x0 or x_t: that sample's bound is NaN, and no other."""
    for layout in FORMATS:
        (output, target, x0, x_t, t), table = problem((6, 3, 5, 7), dtype, layout)
        for sample, step in enumerate(t.tolist()):
            spoilt = [v.clone() for v in (output, x0, x_t)]
            [spoilt[0][:, :3], spoilt[0][:, 3:], spoilt[1], spoilt[2]][place][sample, 1, 2, 3] = math.nan
            _, bound = ops.hybrid_loss(spoilt[0], target, *spoilt[1:], t, table.rows())
            assert bound.isnan().tolist() == [i == sample for i in range(6)], step


def with_gradient(given, rows):
    results = ops.hybrid_loss(*given, rows)
    return *results, torch.autograd.grad(sum(results).sum(), given[0])[0]


def test_losses_depend_on_the_sample_alone():
    """To the bit, whatever the batch and the number of threads."""
    threads = torch.get_num_threads()
    for layout in FORMATS:
        (output, target, x0, x_t, t), table = problem((9, 3, 31, 17), "float32", layout)
        given, rows = (output.requires_grad_(), target, x0, x_t, t), table.rows()
        whole = with_gradient(given, rows)
        alone = [with_gradient([v[i : i + 1] for v in given], rows) for i in range(9)]
        for i, found in enumerate(whole):
            assert torch.equal(found, torch.cat([one[i] for one in alone]))
        try:
            torch.set_num_threads(1)
            assert all(torch.equal(a, b) for a, b in zip(with_gradient(given, rows), whole, strict=True))
        finally:
            torch.set_num_threads(threads)


def test_bound_terms_pass_opcheck_and_refuse_gradients():
    (output, _, x0, x_t, t), table = problem((3, 2, 3, 4), "float32", "nhwc")
    arguments = (output, x0, x_t, t, table.rows(), 1.0, True, "discrete", 256)
    torch.library.opcheck(torch.ops.fastdiff.bound_terms.default, arguments)
    options = {"learned_variance": True, "clip": 1.0}
    with pytest.raises(ValueError, match="bound_terms has no gradient"):
        ops.bound_terms(output.requires_grad_(), x0, x_t, t, table.rows(), **options)
    with torch.no_grad():
        ours = ops.bound_terms(output, x0, x_t, t, table.rows(), implementation="cpu", **options)
        theirs = ops.bound_terms(output, x0, x_t, t, table.rows(), implementation="reference", **options)
        with pytest.raises(IndexError, match=r"t must be in \[0, 12\), got -1"):
            ops.bound_terms(output, x0, x_t, t - 1, table.rows(), **options)
    assert all(torch.allclose(a, b, rtol=FLOAT32_DEEP) for a, b in zip(ours, theirs, strict=True))
