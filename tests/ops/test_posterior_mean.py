"""posterior_mean: the reference against the schedule's own numbers in float64, its gradients, what it refuses."""

import numpy as np
import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from support.tolerances import FLOAT32, FLOAT32_FEW, FLOAT64_RUN, STORAGE

SCHEDULE = NoiseSchedule.cosine(20)
PREDICTIONS = ["eps", "x0", "v", "score"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
T = torch.tensor([0, 7, 19])


def random(shape, seed, dtype=torch.float64, layout="nchw"):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def table_of(prediction, dtype=torch.float64):
    return torch.tensor(Diffusion(SCHEDULE, prediction).posterior_table()).to(dtype)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_posterior_mean_is_that_of_the_two_gaussians(prediction):
    """Bayes: precisions add, means are weighted by them; x_0 and eps from x_t = alpha x_0 + sigma eps."""
    x0, eps = random((3, 2, 4), 0), random((3, 2, 4), 1)
    alpha, sigma = np.sqrt(SCHEDULE.alphas_cumprod), np.sqrt(1 - SCHEDULE.alphas_cumprod)
    a, s = (torch.tensor(v[T.numpy()])[:, None, None] for v in (alpha, sigma))
    x_t = a * x0 + s * eps
    output = {"eps": eps, "x0": x0, "v": a * eps - s * x0, "score": -eps / s}[prediction]
    mean = ops.posterior_mean(x_t, output, T, table_of(prediction))

    beta = torch.tensor(SCHEDULE.betas[T.numpy()])[:, None, None]
    prev = torch.tensor(SCHEDULE.alphas_cumprod_prev[T.numpy()])[:, None, None]
    # q(x_t | x_{t-1}) as a function of x_{t-1}, times q(x_{t-1} | x_0); at t = 0 the latter is x_0 itself.
    first, second = (1 - beta) / beta, 1 / (1 - prev).clamp(min=1e-300)
    expected = (first * x_t / (1 - beta).sqrt() + second * prev.sqrt() * x0) / (first + second)
    # The end of a cosine schedule divides by an alpha of 1e-3.
    assert torch.allclose(mean, expected, rtol=FLOAT64_RUN, atol=FLOAT64_RUN)


@pytest.mark.parametrize("implementation", ["reference", "cpu"])
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_posterior_mean_matches_its_formula(prediction, clip, dtype, layout, implementation):
    for shape in ((3, 3, 5, 7), (3, 1, 1, 1), (3, 63), (3, 2, 32, 33)):
        check_formula(shape, prediction, clip, dtype, layout, implementation)


def check_formula(shape, prediction, clip, dtype, layout, implementation):
    x_t, m = random(shape, 0, DTYPES[dtype], layout), random(shape, 1, DTYPES[dtype], layout)
    table = table_of(prediction, torch.float64 if dtype == "float64" else torch.float32)
    mean = ops.posterior_mean(x_t, m, T, table, clip=clip, implementation=implementation)
    c = table.double()[T].reshape(3, 4, *[1] * (len(shape) - 1))
    x0 = c[:, 2] * x_t.double() + c[:, 3] * m.double()
    expected = c[:, 0] * (x0 if clip is None else x0.clamp(-clip, clip)) + c[:, 1] * x_t.double()
    assert mean.dtype == x_t.dtype
    assert mean.stride() == x_t.stride()
    # x_0 may be a difference of numbers of its own size over alpha.
    scale = expected.abs() + (c[:, 0] * (c[:, 2] * x_t.double()).abs())
    assert bool(((mean.double() - expected).abs() <= STORAGE[dtype] * scale + FLOAT32 * scale.clamp(min=1)).all())


def test_posterior_mean_is_what_a_ddpm_step_adds_noise_to():
    """The same number by another way: a row of the ancestral sampler's table without its noise."""
    from fastdiff import samplers

    diffusion = Diffusion(SCHEDULE, "eps")
    x_t, m = random((2, 3, 4, 4), 0, torch.float32), random((2, 3, 4, 4), 1, torch.float32)
    table = samplers.ddpm(diffusion, 20)
    row = int(np.flatnonzero(table["t"] == 7)[0])
    step = ops.step(x_t, m, ops.table_rows(table), row, noise=torch.zeros_like(x_t))
    ours = ops.posterior_mean(x_t, m, torch.tensor([7, 7]), table_of("eps", torch.float32), clip=1.0)
    assert torch.allclose(ours, step, atol=FLOAT32_FEW)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_posterior_mean_gradients_are_those_of_finite_differences(clip):
    values = [random((3, 2, 3), seed).requires_grad_() for seed in (0, 1)]
    for prediction in PREDICTIONS:
        table = table_of(prediction)
        assert torch.autograd.gradcheck(lambda x, m, c=table: ops.posterior_mean(x, m, T, c, clip=clip), values)


def test_posterior_mean_gradients_have_the_types_of_their_tensors():
    x_t = random((3, 2, 3), 0, torch.float32).requires_grad_()
    m = random((3, 2, 3), 1, torch.bfloat16).requires_grad_()
    ops.posterior_mean(x_t, m, T, table_of("v", torch.float32), clip=1.0).sum().backward()
    assert (x_t.grad.dtype, m.grad.dtype) == (torch.float32, torch.bfloat16)


def test_posterior_mean_passes_opcheck():
    for dtype, layout, clip in ((torch.float32, "nhwc", 1.0), (torch.bfloat16, "nchw", None)):
        x_t = random((3, 2, 3, 4), 0, dtype, layout).requires_grad_()
        m = random((3, 2, 3, 4), 1, torch.float32).requires_grad_()
        arguments = (x_t, m, T, table_of("v", torch.float32), clip)
        torch.library.opcheck(torch.ops.fastdiff.posterior_mean.default, arguments)


def test_posterior_mean_compiles_and_runs_under_autocast():
    x_t, m = random((3, 2, 3, 4), 0, torch.float32, "nhwc"), random((3, 2, 3, 4), 1, torch.bfloat16)
    table = table_of("v", torch.float32)

    def run(x_t, m):
        return ops.posterior_mean(x_t, m, T, table, clip=1.0)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x_t, m), run(x_t, m))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(x_t, m), compiled(x_t, m))
        assert run(x_t, m).dtype == torch.float32


def test_posterior_mean_of_nothing_and_of_strided_views():
    empty = torch.empty(0, 3, 4, 4)
    assert ops.posterior_mean(empty, empty, T[:0], table_of("v", torch.float32)).shape == (0, 3, 4, 4)
    x_t = random((3, 6, 5, 8), 0)[:, ::2, :, 1:7]
    table = table_of("v")
    assert torch.equal(ops.posterior_mean(x_t, x_t, T, table), ops.posterior_mean(x_t.clone(), x_t.clone(), T, table))


GOOD = {"x_t": torch.zeros(3, 2), "model_output": torch.zeros(3, 2), "t": T, "table": torch.zeros(20, 4)}
BAD = {
    r"x_t must be \[B": {"x_t": torch.zeros(3, 2, dtype=torch.int32)},
    r"model_output must be \[3, 2\]": {"model_output": torch.zeros(3, 4)},
    "as x_t, got .* on meta": {"model_output": torch.zeros(3, 2, device="meta")},
    "model_output of torch.float64 does not fit": {"model_output": torch.zeros(3, 2).double()},
    r"t must be int64 \[3\]": {"t": T.int()},
    r"t must be int64 \[3\] on cpu, got .*\[2\]": {"t": T[:2]},
    "posterior_table": {"table": torch.zeros(20, 3)},
    "table must be torch.float32": {"table": torch.zeros(20, 4).double()},
    "clip must be finite and above 0, or None, got 0": {"clip": 0.0},
    "clip must be .* got inf": {"clip": float("inf")},
    "implementation must be": {"implementation": "fast"},
}


@pytest.mark.parametrize("message", BAD)
def test_posterior_mean_refuses(message):
    with pytest.raises(ValueError, match=message):
        ops.posterior_mean(**(GOOD | BAD[message]))


@pytest.mark.parametrize("t", [-1, 20])
def test_posterior_mean_refuses_t_out_of_range(t):
    with pytest.raises(IndexError, match=r"t must be in \[0, 20\)"):
        ops.posterior_mean(**(GOOD | {"t": torch.tensor([0, t, 1])}))
