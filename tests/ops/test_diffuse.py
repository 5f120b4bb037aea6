"""diffuse and step: C++ against the reference, the reference against float64 formulas and closed forms."""

import numpy as np
import pytest
import torch

from fastdiff import (
    ops,
)
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.op_cases import DTYPES, FORMATS, IMPLEMENTATIONS, all_cases, images, noising_table, relative_error
from support.tolerances import FLOAT32, NORMAL_ULP, STORAGE


def exact_diffuse(x0, t, seed, ids, rows, stream, table):
    """float64 in NumPy, from the noise contract's NumPy implementation and the rounded coefficients."""
    n = int(np.prod(x0.shape[1:]))
    z = noise.normals(seed, ids, n, stream, rows).astype(np.float64).reshape(x0.shape)
    c = table.double().numpy()[t.numpy()].T.reshape(4, -1, *[1] * (x0.ndim - 1))
    x = x0.double().numpy()
    return torch.from_numpy(c[0] * x + c[1] * z), torch.from_numpy(c[2] * x + c[3] * z)


@all_cases
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_matches_its_formula(shape, dtype, layout, implementation):
    x0 = images(shape, DTYPES[dtype], layout)
    batch = shape[0]
    t = torch.arange(batch) * 7 % 100
    ids, rows = torch.arange(batch) * 3 + 2**33, torch.arange(batch) + 5
    table = noising_table(DTYPES[dtype])
    x_t, target = ops.diffuse(
        x0, t, table, seed=2**63 + 1, sample_ids=ids, row=rows, stream=4, implementation=implementation
    )
    expected = exact_diffuse(x0, t, 2**63 + 1, ids.numpy(), rows.numpy(), 4, table)
    for ours, exact in zip((x_t, target), expected, strict=True):
        assert ours.dtype == x0.dtype
        assert ours.shape == x0.shape
        assert ours.stride() == torch.empty_like(x0, memory_format=ops.memory_format(x0)).stride()
        # float64 results hold float32 noise: one float32 rounding of it.
        tolerance = 1e-6 if dtype == "float64" else STORAGE[dtype]
        assert relative_error(ours, exact) <= tolerance


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("levels", [2, 17, 256])
@pytest.mark.parametrize("layout", FORMATS)
def test_diffuse_scales_bytes(implementation, levels, layout):
    v = torch.randint(0, levels, (3, 3, 5, 7), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    v = v.contiguous(memory_format=FORMATS[layout])
    t = torch.tensor([0, 50, 99])
    x_t, target = ops.diffuse(v, t, noising_table(), seed=3, levels=levels, implementation=implementation)
    assert x_t.dtype == torch.float32
    expected = exact_diffuse(2 * v.double() / (levels - 1) - 1, t, 3, range(3), 0, Stream.TRAIN_NOISE, noising_table())
    assert relative_error(x_t, expected[0]) < FLOAT32
    assert relative_error(target, expected[1]) < FLOAT32
    options = {"seed": 3, "levels": levels, "implementation": implementation}
    half, _ = ops.diffuse(v, t, noising_table(), dtype=torch.bfloat16, **options)
    assert half.dtype == torch.bfloat16
    assert relative_error(half, expected[0]) < STORAGE["bfloat16"]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("noise_layout", FORMATS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("noise_dtype", ["float32", "bfloat16", "float16"])
def test_diffuse_takes_given_noise(implementation, layout, noise_layout, noise_dtype):
    x0, z = images((2, 3, 4, 6), layout=layout), images((2, 3, 4, 6), DTYPES[noise_dtype], noise_layout, seed=5)
    t = torch.tensor([3, 80])
    x_t, target = ops.diffuse(x0, t, noising_table(), noise=z, implementation=implementation)
    c = noising_table().double()[t].T.reshape(4, 2, 1, 1, 1)
    assert relative_error(x_t, c[0] * x0.double() + c[1] * z.double()) < FLOAT32
    assert relative_error(target, c[2] * x0.double() + c[3] * z.double()) < FLOAT32


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_can_leave_the_target_out(implementation):
    x0, t = images((2, 3, 4, 4)), torch.tensor([1, 2])
    both = ops.diffuse(x0, t, noising_table(), implementation=implementation)
    one = ops.diffuse(x0, t, noising_table(), target=False, implementation=implementation)
    assert torch.equal(both[0], one[0])
    assert one[1].numel() == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_diffuse_of_strided_views_and_empty_batches(implementation):
    x0 = images((4, 6, 8, 8))[::2, 1::2, :, ::2]
    t = torch.tensor([1, 2])
    x_t, _ = ops.diffuse(x0, t, noising_table(), implementation=implementation)
    assert torch.equal(x_t, ops.diffuse(x0.contiguous(), t, noising_table(), implementation=implementation)[0])
    empty, _ = ops.diffuse(x0[:0], t[:0], noising_table(), implementation=implementation)
    assert empty.shape == (0, 3, 8, 4)
    nothing, _ = ops.diffuse(x0[:, :0], t, noising_table(), implementation=implementation)
    assert nothing.shape == (2, 0, 8, 4)


def test_diffuse_normals_are_within_ulps_of_the_contract():
    table = torch.tensor([[0.0, 1.0, 0.0, 1.0]])
    z, _ = ops.diffuse(
        torch.zeros(8, 1, 512, 512), torch.zeros(8, dtype=torch.int64), table, seed=9, implementation="cpu"
    )
    exact = noise.normals(9, range(8), 512 * 512, Stream.TRAIN_NOISE, 0).reshape(z.shape)
    assert (np.abs(z.numpy().astype(np.float64) - exact) <= NORMAL_ULP * np.spacing(np.abs(exact))).all()


def test_diffuse_gradients_are_the_coefficients():
    x0 = images((3, 2, 2, 2), torch.float64).requires_grad_()
    z = images((3, 2, 2, 2), torch.float64, seed=2).requires_grad_()
    t = torch.tensor([0, 40, 99])

    def run(x0, z):
        return ops.diffuse(x0, t, noising_table(torch.float64), noise=z)

    assert torch.autograd.gradcheck(run, (x0, z))
    assert torch.autograd.gradcheck(lambda x0: run(x0, z.detach())[0], (x0,))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("row", [-1, 2**28])
def test_diffuse_refuses_rows_out_of_range(implementation, row):
    with pytest.raises(IndexError, match=rf"row must be in \[0, {2**28}\), got {row}"):
        ops.diffuse(
            images((1, 1, 2, 2)),
            torch.tensor([0]),
            noising_table(),
            row=torch.tensor([row]),
            implementation=implementation,
        )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("t", [-1, 100])
def test_diffuse_refuses_t_out_of_range(implementation, t):
    with pytest.raises(IndexError, match=rf"t must be in \[0, 100\), got {t}"):
        ops.diffuse(images((2, 1, 2, 2)), torch.tensor([0, t]), noising_table(), implementation=implementation)


BAD_DIFFUSE = {
    "integers": ({"x0": torch.zeros(2, 1, 2, 2, dtype=torch.int32)}, "uint8 or floating"),
    "short t": ({"t": torch.tensor([1])}, "t must be int64"),
    "float t": ({"t": torch.tensor([1.0, 2.0])}, "t must be int64"),
    "float64 table": ({"table": noising_table(torch.float64)}, "table must be"),
    "narrow table": ({"table": torch.zeros(4, 3)}, "table must be"),
    "t elsewhere": ({"t": torch.tensor([1, 2], device="meta")}, "on cpu, got .* on meta"),
    "table elsewhere": ({"table": noising_table().to("meta")}, "on cpu .* on meta"),
    "one level": ({"levels": 1}, "levels"),
    "stream": ({"stream": 16}, "stream"),
    "seed": ({"seed": -1}, "seed"),
    "row": ({"row": 2**28}, "row"),
    "row shape": ({"row": torch.tensor([1, 2, 3])}, "row must be"),
    "ids": ({"sample_ids": torch.tensor([1])}, "sample_ids must be"),
    "noise": ({"noise": torch.zeros(2, 1, 2, 3)}, "noise must be"),
    "dtype": ({"dtype": torch.float64}, "float64 goes with float64"),
    "implementation": ({"implementation": "cuda"}, "implementation must be"),
}


@pytest.mark.parametrize("case", BAD_DIFFUSE)
def test_diffuse_refuses(case):
    options, message = BAD_DIFFUSE[case]
    arguments = {"x0": images((2, 1, 2, 2)), "t": torch.tensor([1, 2]), "table": noising_table()} | options
    with pytest.raises(ValueError, match=message):
        ops.diffuse(**arguments)
