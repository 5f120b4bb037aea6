"""TableState: rows as `ops.step` executes them, and what is kept between them when the state changes its shape."""

import pytest
import torch

from fastdiff import ops, samplers
from fastdiff.ops.table_state import TableState
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from support.tolerances import FLOAT32

DIFFUSION = Diffusion(NoiseSchedule.linear(100))
NAMES = ["ddpm", "ddim", "dpmpp_3m", "unipc", "heun", "pndm", "dpmpp_singlestep", "repaint"]


def state_of(shape=(3, 2, 5, 4), seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def network(x):
    return 0.6 * x + 0.3 * torch.sin(2 * x)


def walk(state, x, rows=None, between=lambda row, x: x, **options):
    for row in range(len(state.table)) if rows is None else rows:
        x = between(row, x)
        output = network(state.network_input(row, x)[0]) if state.evaluates[row] else None
        x, _ = state.step(row, x, output, **options)
    return x


@pytest.mark.parametrize(
    "laid_out", [torch.contiguous_format, torch.channels_last], ids=["contiguous", "channels_last"]
)
@pytest.mark.parametrize("name", NAMES)
def test_table_state_equals_the_op_row_by_row(name, laid_out):
    table = samplers.build(name, DIFFUSION, 8)
    x = state_of().contiguous(memory_format=laid_out)
    rows = ops.table_rows(table)
    base = torch.empty_like(x) if table.uses_base else None
    history = ops.new_history(x, table.history_depth) if table.history_depth else None
    expected = x
    for row in range(len(table)):
        output = network(table["ci"][row] * expected) if table["evaluate"][row] else None
        expected = ops.step(expected, output, rows, row, seed=7, base=base, history=history)
    assert torch.equal(walk(TableState(table), x, seed=7), expected)


@pytest.mark.parametrize("name", ["dpmpp_3m", "heun"])
def test_table_state_shows_what_no_row_has_written(name):
    table = samplers.build(name, DIFFUSION, 8)
    reader = next(row for row in range(len(table)) if table["c2"][row] or table["c1"][row] or table["cb"][row])
    assert walk(TableState(table), state_of(), rows=[reader]).isnan().all()


@pytest.mark.parametrize("name", ["dpmpp_3m", "unipc", "heun"])
def test_table_state_keeps_its_slots_when_layout_or_type_change(name):
    """A state that changes between rows, as one does that a picture was pasted into."""
    table = samplers.build(name, DIFFUSION, 8)
    kinds = [
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.double(),
        lambda x: x.float().contiguous(),
    ]
    expected = walk(TableState(table), state_of())
    found = walk(TableState(table), state_of(), between=lambda row, x: kinds[row % 3](x))
    assert torch.allclose(found.float(), expected, rtol=0, atol=8 * FLOAT32)


def test_table_state_forgets_a_batch_of_another_size():
    table = samplers.build("dpmpp_3m", DIFFUSION, 8)
    state = TableState(table)
    walk(state, state_of(), rows=range(3))
    assert walk(state, state_of((2, 2, 5, 4)), rows=[3]).isnan().all()
    assert torch.equal(walk(state, state_of()), walk(TableState(table), state_of()))


def test_table_state_takes_samples_at_different_rows():
    table = samplers.build("ddpm", DIFFUSION, 8)
    x, row = state_of(), torch.tensor([0, 5, 2])
    together, _ = TableState(table).step(row, x, network(x), seed=3)
    for i, number in enumerate(row.tolist()):
        ids = torch.tensor([i])
        alone, _ = TableState(table).step(number, x[i : i + 1], network(x[i : i + 1]), seed=3, sample_ids=ids)
        assert torch.equal(together[i : i + 1], alone)


def test_table_state_writes_predictions_where_told():
    table = samplers.build("ddim", DIFFUSION, 8)
    x, state = state_of(), TableState(table)
    _, made = state.step(0, x, network(x), prediction=True)
    given = torch.empty_like(x)
    _, same = state.step(0, x, network(x), prediction=given)
    assert same is given
    assert torch.equal(made, given)
    assert given.abs().max() <= 1
    assert state.step(0, x, network(x))[1] is None


def test_table_state_gives_the_network_its_input():
    whole = TableState(samplers.build("ddim", DIFFUSION, 8))
    x, t = whole.network_input(2, state_of())
    assert t.dtype == torch.int64
    assert t.tolist() == [int(whole.table["t"][2])] * 3
    assert torch.equal(x, state_of())
    between = TableState(samplers.build("edm", DIFFUSION, 9, s_churn=5.0))
    row = int(between.table["ci"].argmin())
    x, t = between.network_input(row, state_of(), torch.float64)
    assert t.dtype == torch.float32
    assert x.dtype == torch.float64
    assert torch.equal(x, (state_of() * float(between.table["ci"][row])).double())


def test_table_state_counts_rows_and_records_no_gradient():
    state = TableState(samplers.build("ddim", DIFFUSION, 8))
    x = state_of().requires_grad_()
    y, _ = state.step(4, x, network(x))
    assert state.next == 5
    assert not y.requires_grad
    with pytest.raises(IndexError, match="row must be in"):
        state.step(8, state_of(), state_of())
