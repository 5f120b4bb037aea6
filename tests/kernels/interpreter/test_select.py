"""The Triton kernel of select against plain indexing: products, padding, the row's vector and time."""

import pytest
import torch

from fastdiff.kernels.select import launch_select
from fastdiff.process.table import ROW_FIELDS, ROW_WIDTH
from support.triton_cases import DTYPES, FORMATS, images

ROWS = 5


def table(device):
    rows = torch.zeros(ROWS, ROW_WIDTH)
    rows[:, ROW_FIELDS.index("ci")] = torch.tensor([1.0, 0.5, 0.3, -2.0, 1e-3])
    return rows.to(device)


def poisoned(shape, dtype, device, layout="nchw"):
    x = torch.full(shape, torch.nan, dtype=dtype, device=device)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def number(value, device):
    return torch.tensor([value], device=device)


@pytest.mark.parametrize("x_layout", FORMATS)
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("shape", "channels"), [((2, 3, 5, 7), 8), ((1, 1, 1, 1), 1), ((3, 4, 33, 9), 4)], ids=str)
def test_select_scales_and_pads(device, shape, channels, layout, x_layout):
    x = images(shape, device, layout=x_layout)
    scaled = poisoned((shape[0], channels, *shape[2:]), torch.float32, device, layout)
    launch_select(x, table(device), number(2, device), scaled)
    assert torch.equal(scaled[:, : shape[1]], x * 0.3)
    assert not scaled[:, shape[1] :].any()


@pytest.mark.parametrize("x_dtype", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_select_rounds_as_an_eager_product(device, dtype, x_dtype):
    x = images((2, 3, 4, 6), device, DTYPES[x_dtype], "nhwc")
    scaled = poisoned((2, 8, 4, 6), DTYPES[dtype], device, "nhwc")
    launch_select(x, table(device), number(2, device), scaled)
    expected = (x * 0.3).to(DTYPES[dtype])
    if "bfloat16" in (dtype, x_dtype):
        # Triton's interpreter truncates to bfloat16.
        torch.testing.assert_close(scaled[:, :3].float(), expected.float(), rtol=2**-6, atol=0)
    else:
        assert torch.equal(scaled[:, :3], expected)


def test_select_keeps_the_state_where_its_factor_is_one(device):
    x = images((2, 3, 4, 6), device, torch.bfloat16)
    scaled = poisoned((2, 3, 4, 6), torch.bfloat16, device)
    launch_select(x, table(device), number(0, device), scaled)
    assert torch.equal(scaled, x)


@pytest.mark.parametrize("size", [(1, 1500), (4, 40)], ids=str)
@pytest.mark.parametrize("t_dtype", [torch.int64, torch.float32])
def test_select_writes_vector_and_time_of_the_row(device, size, t_dtype):
    x = images((2, 3, 4, 6), device)
    times = torch.randn(ROWS, *size, generator=torch.Generator().manual_seed(0)).to(device)
    t = torch.arange(ROWS, device=device).to(t_dtype) * 7
    for row in range(ROWS):
        scaled, vector = poisoned(x.shape, torch.float32, device), poisoned(size, torch.float32, device)
        time = torch.zeros(1, dtype=t_dtype, device=device)
        launch_select(x, table(device), number(row, device), scaled, times=times, vector=vector, t=t, time=time)
        assert torch.equal(vector, times[row])
        assert torch.equal(time, t[row : row + 1])
        assert torch.equal(scaled, x * table(device)[row, ROW_FIELDS.index("ci")])


def test_select_repeats_the_state(device):
    x = images((2, 3, 5, 7), device)
    for layout in FORMATS:
        scaled = poisoned((6, 4, 5, 7), torch.float32, device, layout)
        launch_select(x, table(device), number(1, device), scaled)
        assert torch.equal(scaled[:, :3], (x * 0.5).repeat(3, 1, 1, 1))


@pytest.mark.parametrize(("row", "count"), [(-1, None), (ROWS, None), (3, 3)], ids=str)
def test_select_of_a_row_out_of_range_is_nan(device, row, count):
    x = images((1, 2, 3, 3), device)
    scaled, vector = torch.zeros_like(x), torch.zeros(1, 4, device=device)
    time, whole = torch.zeros(1, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    count = None if count is None else number(count, device)
    arguments = {"times": torch.zeros(ROWS, 1, 4, device=device), "vector": vector, "num_rows": count}
    launch_select(
        x, table(device), number(row, device), scaled, t=torch.zeros(ROWS, device=device), time=time, **arguments
    )
    assert scaled.isnan().all()
    assert vector.isnan().all()
    assert time.isnan().all()
    launch_select(x, table(device), number(row, device), scaled, t=whole.repeat(ROWS), time=whole, **arguments)
    assert whole.tolist() == [-1]


def test_select_of_nothing(device):
    x = torch.zeros(0, 3, 4, 4, device=device)
    launch_select(x, table(device), number(1, device), torch.zeros_like(x))


def test_select_refuses_what_does_not_fit(device):
    x, rows, row = torch.zeros(2, 3, 4, 4, device=device), table(device), number(0, device)
    with pytest.raises(ValueError, match=r"scaled must be \[n B, C or more, ...\]"):
        launch_select(x, rows, row, torch.zeros(3, 3, 4, 4, device=device))
    with pytest.raises(ValueError, match="compute in float32"):
        launch_select(x.double(), rows, row, torch.zeros_like(x))
    with pytest.raises(ValueError, match="given together"):
        launch_select(x, rows, row, torch.zeros_like(x), times=torch.zeros(ROWS, 1, 4, device=device))
    times, vector = torch.zeros(ROWS, 1, 4, device=device), torch.zeros(1, 5, device=device)
    with pytest.raises(ValueError, match="vector must be"):
        launch_select(x, rows, row, torch.zeros_like(x), times=times, vector=vector)
    with pytest.raises(ValueError, match="t must be contiguous"):
        launch_select(x, rows, row, torch.zeros_like(x), t=torch.zeros(1, device=device).expand(ROWS), time=row)
    with pytest.raises(ValueError, match="x must be channels_last or contiguous"):
        launch_select(x.transpose(2, 3), rows, row, torch.zeros_like(x))
