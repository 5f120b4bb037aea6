"""The Triton kernel of diffuse against the reference in float64, on the same rounded coefficients."""

import pytest
import torch

from fastdiff import Diffusion, NoiseSchedule, ops
from fastdiff.calls import DiffuseCall
from fastdiff.kernels.diffuse import launch_diffuse
from fastdiff.ops.reference import diffuse as reference
from support.triton_cases import DTYPES, FORMATS, SHAPES, assert_near, images

SEED = (1 << 64) - 1
NUM_TIMESTEPS = 50


@pytest.fixture(scope="module")
def table(device):
    diffusion = Diffusion(NoiseSchedule.linear(NUM_TIMESTEPS), "v")
    return torch.tensor(diffusion.noising_table(), dtype=torch.float32, device=device)


def counters(batch, device):
    """Timesteps, sample ids of more than 32 bits, and rows, of each sample its own."""
    numbers = torch.arange(batch, device=device)
    return numbers * 7 % NUM_TIMESTEPS, (numbers << 33) + 2 * numbers + 1, numbers * 1000 + 3


def run_and_check(x0, table, dtype=None, noise=None, levels=256):
    t, ids, row = counters(x0.shape[0], x0.device)
    x_t, target = ops.diffuse(
        x0, t, table, seed=SEED, sample_ids=ids, row=row, stream=15, noise=noise, levels=levels, dtype=dtype,
        implementation="triton",
    )  # fmt: skip
    scaled = x0.double() * (2 / (levels - 1)) - 1 if x0.dtype == torch.uint8 else x0.double()
    given = None if noise is None else noise.double()
    call = DiffuseCall(scaled, t, table, given, ids, row, SEED, 15, levels, torch.float64, True)
    expected = reference.diffuse(call)
    for ours, exact in zip((x_t, target), expected, strict=True):
        assert_near(ours, exact)
        assert ours.stride() == torch.empty(x0.shape).contiguous(memory_format=ops.memory_format(x0)).stride()
    return x_t


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_diffuse_matches_the_reference(device, table, shape, layout):
    run_and_check(images(shape, device, layout=layout), table)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 8), (2, 3, 5, 7), (1, 8, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_diffuse_in_16_bits(device, table, dtype, shape, layout):
    run_and_check(images(shape, device, DTYPES[dtype], layout), table)


def test_diffuse_takes_a_type_for_its_results(device, table):
    assert run_and_check(images((2, 3, 4, 8), device, torch.bfloat16), table, torch.float32).dtype == torch.float32


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("dtype", "levels"), [("float32", 256), ("bfloat16", 256), ("float32", 2)])
def test_diffuse_scales_integers(device, table, dtype, levels, layout):
    x0 = (torch.arange(2 * 3 * 9 * 10, device=device) % levels).to(torch.uint8).reshape(2, 3, 9, 10)
    run_and_check(x0.contiguous(memory_format=FORMATS[layout]), table, DTYPES[dtype], levels=levels)


@pytest.mark.parametrize("shape", [(3,), (3, 2), (2, 3, 10), (2, 3, 2, 2, 3), (1, 1100)], ids=str)
def test_diffuse_of_any_rank(device, table, shape):
    run_and_check(images(shape, device), table)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("noise_layout", FORMATS)
def test_diffuse_uses_the_given_noise(device, table, layout, noise_layout):
    x0 = images((2, 3, 5, 4), device, layout=layout)
    run_and_check(x0, table, noise=images(x0.shape, device, torch.bfloat16, noise_layout, seed=1))


def test_diffuse_of_a_view_that_is_not_dense(device, table):
    x0 = images((2, 6, 5, 8), device)[:, ::2, :, 1:7]
    assert run_and_check(x0, table).is_contiguous()


def test_diffuse_reads_timesteps_and_coefficients_through_their_strides(device, table):
    x0 = images((3, 3, 2, 4), device)
    t = torch.tensor([3, 99, 0, 99, 7, 99], device=device)[::2]
    row, options = torch.tensor([5], device=device).expand(3), {"implementation": "triton"}
    found = ops.diffuse(x0, t, table.T.contiguous().T, row=row, **options)
    expected = ops.diffuse(x0, t.clone(), table, row=5, **options)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


def test_diffuse_without_a_target(device, table):
    x0 = images((2, 3, 4, 4), device)
    t, ids, row = counters(2, device)
    options = {"sample_ids": ids, "row": row, "implementation": "triton"}
    x_t, target = ops.diffuse(x0, t, table, target=False, **options)
    assert target.shape == (0,)
    assert torch.equal(x_t, ops.diffuse(x0, t, table, **options)[0])


@pytest.mark.parametrize("layout", FORMATS)
def test_diffuse_gives_nan_for_a_timestep_out_of_range(device, table, layout):
    x0 = images((5, 3, 3, 4), device, layout=layout)
    t = torch.tensor([0, -1, NUM_TIMESTEPS - 1, NUM_TIMESTEPS, 1 << 60], device=device)
    good = t.clamp(0, NUM_TIMESTEPS - 1)
    for ours, valid in zip(
        ops.diffuse(x0, t, table, implementation="triton"),
        ops.diffuse(x0, good, table, implementation="triton"),
        strict=True,
    ):
        assert ours[[1, 3, 4]].isnan().all()
        assert torch.equal(ours[[0, 2]], valid[[0, 2]])


@pytest.mark.parametrize("layout", FORMATS)
def test_diffuse_reads_its_seed_from_memory(device, table, layout):
    """In place of the scalar, as a captured launch must; so is the number of timesteps that count."""
    x0 = images((3, 3, 5, 6), device, layout=layout)
    t, ids, row = counters(3, device)
    call = DiffuseCall(x0, t, table, None, ids, row, -5, 15, 256, torch.float32, True)
    expected = launch_diffuse(call)
    seed, count = torch.tensor([-5], device=device), torch.tensor([NUM_TIMESTEPS], device=device)
    found = launch_diffuse(call._replace(seed=1), seed=seed, num_timesteps=count)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    x_t, _ = launch_diffuse(call, num_timesteps=t[2:] + 0)
    assert x_t[2:].isnan().all()
    assert torch.equal(x_t[:2], expected[0][:2])


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 0, 4, 4), (2, 3, 0, 4)], ids=str)
def test_diffuse_of_nothing(device, table, shape):
    x0 = images(shape, device, torch.float16)
    x_t, target = ops.diffuse(x0, counters(shape[0], device)[0], table, implementation="triton")
    assert x_t.shape == target.shape == shape
    assert x_t.dtype == torch.float16


def test_diffuse_does_not_depend_on_batch_or_layout(device, table):
    x0 = images((3, 3, 5, 7), device)
    t, ids, row = counters(3, device)

    def run(x0, n):
        return ops.diffuse(x0, t[n], table, sample_ids=ids[n], row=row[n], implementation="triton")[0]

    whole = run(x0, slice(0, 3))
    assert torch.equal(whole[1:2], run(x0[1:2], slice(1, 2)))
    assert torch.equal(whole, run(x0.contiguous(memory_format=torch.channels_last), slice(0, 3)))


def test_diffuse_refuses_float64(device, table):
    x0 = images((1, 1, 2, 2), device, torch.float64)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.diffuse(x0, torch.tensor([0], device=device), table.double(), implementation="triton")
