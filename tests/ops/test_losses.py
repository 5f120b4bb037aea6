"""mse, hybrid_loss, bound_loss: against the reference and its autograd in float64; gradients; what they refuse."""

import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.ops.reference import bound as losses
from fastdiff.ops.reference.bound import BoundTable
from support.tolerances import FLOAT32, FLOAT64, FLOAT64_DIFFERENCE, STORAGE

T = 12
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def process(prediction="eps", variance="learned_range"):
    return Diffusion(NoiseSchedule.linear(T, 1e-3, 0.3), prediction, variance)


def random(shape, seed, dtype=torch.float64, layout="nchw"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def problem(diffusion, dtype=torch.float64, layout="nchw", shape=(3, 2, 4, 5)):
    """Output, target, x0, x_t and t = 0, 5, 11."""
    t = torch.tensor([0, 5, 11])
    x0 = torch.round((torch.tanh(random(shape, 1)) + 1) * 127.5) / 127.5 - 1
    x0.view(3, -1)[:, 0], x0.view(3, -1)[:, 1] = -1.0, 1.0
    rows = torch.tensor(diffusion.noising_table())[t][:, :, None, None, None]
    noise = random(shape, 2)
    x_t = rows[:, 0] * x0 + rows[:, 1] * noise
    width = 2 if diffusion.learned_variance else 1
    output = torch.cat([noise * 0.9, random(shape, 3) * 0.3][:width], dim=1)
    tensors = (v.to(dtype).contiguous(memory_format=FORMATS[layout]) for v in (output, noise, x0, x_t))
    return *tensors, t


def rows_of(diffusion, dtype):
    return BoundTable.build(diffusion, dtype=torch.float64 if dtype == torch.float64 else torch.float32).rows()


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 1, 1, 1), (3, 5, 21, 13), (2, 1030), (4,)], ids=str)
def test_mse_matches_float64(shape, dtype, layout, implementation):
    output, target = random(shape, 0, DTYPES[dtype], layout), random(shape, 1, DTYPES[dtype])
    output.requires_grad_()
    loss = ops.mse(output, target, implementation=implementation)
    exact = (output.double() - target.double()).square().reshape(shape[0], -1).mean(1)
    assert loss.dtype == (torch.float64 if dtype == "float64" else torch.float32)
    assert torch.allclose(loss.double(), exact, rtol=FLOAT32)
    grad = random(shape[:1], 2, loss.dtype)
    (found,) = torch.autograd.grad(loss, output, grad)
    (expected,) = torch.autograd.grad(exact, output, grad.double())
    assert found.dtype == output.dtype
    assert bool(((found.double() - expected).abs() <= STORAGE[dtype] * expected.abs()).all())


def test_mse_gradients_are_those_of_finite_differences():
    values = [random((2, 3, 4), seed).requires_grad_() for seed in (0, 1)]
    # Finite differences of log-probabilities, at gradcheck's own step.
    assert torch.autograd.gradcheck(ops.mse, values)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("decoder", ["discrete", "gaussian"])
@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_hybrid_loss_is_that_of_fastdiff_losses(dtype, decoder, layout):
    diffusion = process()
    output, target, x0, x_t, t = problem(diffusion, DTYPES[dtype], layout)
    output.requires_grad_()
    rows = rows_of(diffusion, DTYPES[dtype])
    simple, bound = ops.hybrid_loss(output, target, x0, x_t, t, rows, decoder=decoder)
    (grad,) = torch.autograd.grad((simple + 0.012 * bound).sum(), output)

    wide = output.detach().double().requires_grad_()
    table = BoundTable.from_rows(rows.double(), True)
    terms = losses.hybrid(wide, target.double(), x0.double(), x_t.double(), t, table, decoder=decoder, levels=256)
    (exact,) = torch.autograd.grad((terms.mse + 0.012 * terms.vlb / T).sum(), wide)
    # float32's error of the decoder in bits, relative to its largest; see tests/test_losses.py for its exactness.
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    assert torch.allclose(simple.double(), terms.mse, rtol=tolerance)
    assert torch.allclose(bound.double(), terms.vlb / T, rtol=tolerance)
    assert (grad.dtype, grad.stride()) == (output.dtype, output.stride())
    rounding = 2**-8 if dtype == "bfloat16" else tolerance
    for ours, theirs in zip(grad, exact, strict=True):
        assert bool(((ours.double() - theirs).abs() <= rounding * (theirs.abs() + 0.1 * theirs.abs().max())).all())


@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_bound_loss_is_that_of_fastdiff_losses(prediction, variance, clip):
    diffusion = process(prediction, variance)
    output, _, x0, x_t, t = problem(diffusion)
    rows = rows_of(diffusion, torch.float64)
    output.requires_grad_()
    options = {"learned_variance": diffusion.learned_variance, "clip": clip}
    bound = ops.bound_loss(output, x0, x_t, t, rows, **options)

    table = BoundTable.build(diffusion, dtype=torch.float64)
    m, values = output.chunk(2, dim=1) if diffusion.learned_variance else (output, None)
    mean = table.x0(x_t, t, m)
    mean = mean if clip is None else mean.clamp(-clip, clip)
    exact = losses.variational_terms(x0, t, mean, table.log_variance(t, x_t, values), table)
    assert torch.allclose(bound, exact, rtol=FLOAT64)
    weights = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float64)
    found, expected = (torch.autograd.grad((weights * b).sum(), output)[0] for b in (bound, exact))
    # A narrow bin's derivative by autograd is that of a difference of logs, good to 1e-9 there.
    assert torch.allclose(found, expected, rtol=1e-7, atol=FLOAT64_DIFFERENCE * float(expected.abs().max()))


@pytest.mark.parametrize("decoder", ["discrete", "gaussian"])
def test_bound_loss_gradients_are_those_of_finite_differences(decoder):
    diffusion = process("x0", "learned")
    _, _, x0, x_t, t = problem(diffusion, shape=(3, 1, 2, 2))
    rows = rows_of(diffusion, torch.float64)
    for log_variance in (-8.0, -4.0, 1.0):
        shifted = torch.cat([x0 + 0.01, torch.full_like(x0, log_variance)], dim=1).requires_grad_()
        # Finite differences of log-probabilities, at gradcheck's own step.
        assert torch.autograd.gradcheck(
            lambda o: ops.bound_loss(o, x0, x_t, t, rows, learned_variance=True, decoder=decoder), shifted, rtol=1e-3
        )


@pytest.mark.parametrize("implementation", ["cpu", "reference"])
def test_hybrid_loss_of_one_part_alone(implementation):
    diffusion = process()
    output, target, x0, x_t, t = problem(diffusion)
    output.requires_grad_()
    for part in (0, 1):
        rows = rows_of(diffusion, torch.float64)
        results = ops.hybrid_loss(output, target, x0, x_t, t, rows, implementation=implementation)
        (grad,) = torch.autograd.grad(results[part].sum(), output)
        halves = grad.chunk(2, dim=1)
        # The mean learns from L_simple alone, the variance from the bound alone.
        assert halves[part].abs().min() > 0
        assert torch.equal(halves[1 - part], torch.zeros_like(halves[1 - part]))


def test_losses_pass_opcheck():
    opcheck = torch.library.opcheck
    for dtype, layout in ((torch.float32, "nhwc"), (torch.float64, "nchw")):
        diffusion = process()
        output, target, x0, x_t, t = problem(diffusion, dtype, layout)
        rows = rows_of(diffusion, dtype)
        half = output.chunk(2, dim=1)[0].clone()
        grad = torch.ones(3, dtype=dtype)
        opcheck(torch.ops.fastdiff.mse.default, (half.requires_grad_(), target.clone().requires_grad_()))
        opcheck(torch.ops.fastdiff.mse_backward.default, (grad, half.detach(), target))
        rest = (x0, x_t, t, rows, 1.0, True, False, "discrete", 256)
        for given in (target, None):
            opcheck(torch.ops.fastdiff.bound_loss.default, (output.clone().requires_grad_(), given, *rest))
            grads = (None if given is None else grad, grad)
            opcheck(torch.ops.fastdiff.bound_loss_backward.default, (output, *grads, given, *rest))


def test_losses_compile_without_graph_breaks_and_run_under_autocast():
    diffusion = process()
    output, target, x0, x_t, t = problem(diffusion, torch.float32, "nhwc")
    output, rows = output.requires_grad_(), rows_of(diffusion, torch.float32)

    def run():
        simple, bound = ops.hybrid_loss(output, target, x0, x_t, t, rows)
        return (simple + bound + ops.mse(output.chunk(2, dim=1)[0], target)).sum()

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    with torch.autocast("cpu", torch.bfloat16):
        assert compiled().dtype == torch.float32
    assert torch.allclose(compiled(), run())
    ours, eager = (torch.autograd.grad(f(), output)[0] for f in (compiled, run))
    assert torch.allclose(ours, eager)


def test_losses_of_nothing():
    nothing = torch.empty(0, 2, 3, 3, requires_grad=True)
    ops.mse(nothing, nothing.detach()).sum().backward()
    assert nothing.grad.shape == nothing.shape
    assert bool(ops.mse(torch.empty(2, 0), torch.empty(2, 0)).isnan().all())
    x = torch.empty(0, 4, 3, 3, requires_grad=True)
    half, t = torch.empty(0, 2, 3, 3), torch.empty(0, dtype=torch.int64)
    simple, bound = ops.hybrid_loss(x, half, half, half, t, rows_of(process(), torch.float32))
    assert simple.shape == bound.shape == (0,)
    (simple.sum() + bound.sum()).backward()
    assert x.grad.shape == x.shape


def test_losses_have_no_second_derivative():
    x = random((1, 3), 0).requires_grad_()
    (grad,) = torch.autograd.grad(ops.mse(x, x.detach() * 2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


IMAGE = torch.zeros(3, 2, 4, 4)
GOOD = {
    "output": torch.zeros(3, 4, 4, 4),
    "target": IMAGE,
    "x0": IMAGE,
    "x_t": IMAGE,
    "t": torch.tensor([0, 5, 11]),
    "table": torch.zeros(T, 6),
}
BAD = {
    "output must be .* got torch.int32": {"output": torch.zeros(3, 4, 4, 4, dtype=torch.int32)},
    r"output must be \[B, 2C, ...\]": {"output": torch.zeros(3, 3, 4, 4)},
    r"target must be \[3, 2, 4, 4\]": {"target": torch.zeros(3, 4, 4, 4)},
    "x0 of torch.float64 does not fit": {"x0": IMAGE.double()},
    "x_t must be .* on cpu, got .* on meta": {"x_t": IMAGE.to("meta")},
    "x_t has no gradient here": {"x_t": IMAGE.clone().requires_grad_()},
    r"t must be int64 \[3\]": {"t": torch.zeros(3)},
    "BoundTable.rows": {"table": torch.zeros(T, 4)},
    "decoder must be": {"decoder": "laplace"},
    "levels must be a whole number, at least 2, got 1": {"levels": 1},
}


@pytest.mark.parametrize("message", BAD)
def test_hybrid_loss_refuses(message):
    with pytest.raises(ValueError, match=message):
        ops.hybrid_loss(**(GOOD | BAD[message]))


def test_losses_refuse_other_arguments():
    good = {k: v for k, v in GOOD.items() if k != "target"} | {"learned_variance": True}
    with pytest.raises(ValueError, match="clip must be finite and above 0, or None, got -1"):
        ops.bound_loss(**good, clip=-1.0)
    with pytest.raises(IndexError, match=r"t must be in \[0, 12\), got 12"):
        ops.bound_loss(**(good | {"t": torch.tensor([0, 1, 12])}))
    with pytest.raises(ValueError, match=r"target must be \[2, 3\]"):
        ops.mse(torch.zeros(2, 3), torch.zeros(2, 4))
