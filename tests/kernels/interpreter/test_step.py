"""The Triton kernel of step against the reference in float64, on the same rounded rows."""

import numpy as np
import pytest
import torch

from fastdiff import (
    Diffusion,
    NoiseSchedule,
    ops,
    samplers,
)
from fastdiff.calls import StepCall
from fastdiff.kernels import step
from fastdiff.ops.reference import step as reference
from fastdiff.process.table import ROW_FIELDS, ROW_WIDTH
from support.triton_cases import DTYPES, FORMATS, SHAPES, assert_near, images

SEED = (1 << 64) - 1
WEIGHTS = [letter + slot for letter in "cb" for slot in ("x", "b", "m", "0", "1", "2", "3")]


def make_rows(device, *rows):
    """float32 [R, ROW_WIDTH] from one dict per row; what is left out is 0, but evaluate and clip."""
    table = torch.zeros(len(rows), ROW_WIDTH)
    for i, row in enumerate(rows):
        for name, value in ({"evaluate": 1.0, "clip": np.inf} | row).items():
            table[i, ROW_FIELDS.index(name)] = value
    return table.to(device)


def full_row(seed, **changes):
    """Every slot is read and written, with weights near 1, and noise is drawn."""
    rng = np.random.default_rng(seed)
    row = {name: rng.choice([-1, 1]) * rng.uniform(0.5, 1) for name in ("px", "pm", *WEIGHTS)}
    row |= {"clip": 0.7, "s": 0.3, "log_min": -2.0, "log_max": -0.5, "save_base": 1, "push": 1, "slot": seed % 3}
    return row | changes


class Slots:
    """The tensors of a step, and what they were before it."""

    def __init__(self, shape, device, dtype=torch.float32, layout="nchw", depth=3, model=None, channels=1, seed=0):
        model_shape = (shape[0], channels * shape[1], *shape[2:])
        self.x = images(shape, device, dtype, layout, seed)
        self.model = images(model_shape, device, model or dtype, layout, seed + 1)
        self.base = images(shape, device, dtype, layout, seed + 2)
        self.pred = torch.full_like(self.x, torch.nan)
        self.out = torch.full_like(self.x, torch.nan)
        self.history = None
        if depth:
            self.history = ops.new_history(self.x, depth)
            self.history.copy_(images((depth, *shape), device, dtype, seed=seed + 3))

    def run_and_check(self, rows, row, learned_variance=False, noise=None, sample_ids=None):
        """One step by the kernel in place, and by the reference in float64: every output must agree."""
        batch, device = self.x.shape[0], self.x.device
        ids = (torch.arange(batch, device=device) << 33) + 5 if sample_ids is None else sample_ids
        row_tensor = row if isinstance(row, torch.Tensor) else torch.tensor([row], device=device)
        double = [None if v is None else v.double() for v in (self.x, self.model, noise, self.base, self.history)]
        x, model, given, base, history = double
        expected = reference.step(
            StepCall(x, model, rows.double(), row_tensor, given, ids, SEED, learned_variance, base, history, None, x)
        )
        returned = ops.step(
            self.x, self.model, rows, row, seed=SEED, sample_ids=ids, noise=noise, learned_variance=learned_variance,
            base=self.base, history=self.history, pred_out=self.pred, out=self.out, implementation="triton",
        )  # fmt: skip
        assert returned is self.out
        for ours, exact in zip((self.out, self.pred, self.base, self.history), expected, strict=True):
            if ours is not None and exact is not None:
                assert_near(ours, exact)
        return self.out


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_step_matches_the_reference(device, shape, layout):
    Slots(shape, device, layout=layout).run_and_check(make_rows(device, full_row(0)), 0)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("model", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_step_in_every_pair_of_types(device, dtype, model, layout):
    slots = Slots((2, 3, 4, 8), device, DTYPES[dtype], layout, model=DTYPES[model])
    slots.run_and_check(make_rows(device, full_row(1)), 0)


@pytest.mark.parametrize("shape", [(3, 2), (2, 3, 10), (2, 3, 2, 2, 3), (1, 1100)], ids=str)
def test_step_of_any_rank(device, shape):
    Slots(shape, device, channels=2).run_and_check(make_rows(device, full_row(2)), 0, learned_variance=True)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (2, 3, 5, 7), (1, 4, 3, 6), (2, 1, 3, 3)], ids=str)
def test_step_with_a_learned_variance(device, shape, layout):
    slots = Slots(shape, device, layout=layout, channels=2)
    slots.run_and_check(make_rows(device, full_row(3)), 0, learned_variance=True)


@pytest.mark.parametrize("layout", FORMATS)
def test_step_reads_only_the_first_half_of_a_model_with_a_variance(device, layout):
    slots = Slots((2, 3, 4, 4), device, layout=layout, channels=2)
    slots.model[:, 3:] = torch.nan
    assert slots.run_and_check(make_rows(device, full_row(3)), 0).isfinite().all()


@pytest.mark.parametrize("name", WEIGHTS)
def test_step_with_one_weight_alone(device, name):
    """Every other slot holds NaN, which must not leak."""
    slots = Slots((1, 3, 2, 4), device)
    rows = make_rows(device, {name: 0.75, "px": 0.5 if name[1] == "0" else 0, "save_base": 1, "slot": 1})
    kept = {"x": slots.x, "0": slots.x, "b": slots.base, "m": slots.model}
    kept |= {str(age): slots.history[(1 - age) % 3] for age in (1, 2, 3)}
    for slot in [slots.x, slots.base, slots.model, *slots.history]:
        if slot.data_ptr() != kept[name[1]].data_ptr():
            slot.fill_(torch.nan)
    slots.run_and_check(rows, 0)
    assert slots.out.isfinite().all()
    assert slots.base.isfinite().all()
    assert bool((slots.out if name[0] == "c" else slots.base).abs().min() > 0)


@pytest.mark.parametrize("layout", FORMATS)
def test_step_without_noise_reads_no_variance(device, layout):
    slots = Slots((1, 3, 4, 4), device, layout=layout, channels=2)
    slots.model[:, 3:] = torch.nan
    noise = torch.full_like(slots.x, torch.nan)
    rows = make_rows(device, full_row(4, s=0))
    assert slots.run_and_check(rows, 0, learned_variance=True, noise=noise).isfinite().all()


def test_step_without_an_evaluation_reads_no_model(device):
    slots = Slots((2, 3, 4, 4), device)
    slots.model.fill_(torch.nan)
    rows = make_rows(device, full_row(5, evaluate=0))
    assert slots.run_and_check(rows, 0).isfinite().all()
    slots.model = None
    assert slots.run_and_check(rows, 0).isfinite().all()


@pytest.mark.parametrize("flags", [(0, 0), (0, 1), (1, 0)], ids=["neither", "push", "save base"])
def test_step_keeps_what_its_flags_do_not_write(device, flags):
    slots = Slots((2, 3, 3, 3), device)
    base, history = slots.base.clone(), slots.history.clone()
    slots.run_and_check(make_rows(device, full_row(6, save_base=flags[0], push=flags[1], slot=2)), 0)
    assert torch.equal(slots.base, base) == (not flags[0])
    assert torch.equal(slots.history[:2], history[:2])
    assert torch.equal(slots.history[2], history[2]) == (not flags[1])


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_step_turns_the_ring_of_predictions(device, depth, layout):
    slots = Slots((1, 3, 2, 4), device, layout=layout, depth=depth)
    changes = [
        {f"{letter}{age}": 0.0 for letter in "cb" for age in range(depth + 1, 4)} | {"slot": n} for n in range(depth)
    ]
    rows = make_rows(device, *(full_row(n, **change) for n, change in enumerate(changes)))
    for n in [*range(depth), 0]:
        slots.run_and_check(rows, n)
        assert torch.equal(slots.history[n], slots.pred)
        slots.x, slots.out = slots.out, slots.x


def test_step_without_base_and_history(device):
    slots = Slots((2, 3, 4, 4), device, depth=0)
    slots.base = None
    slots.run_and_check(make_rows(device, full_row(7)), 0)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("noise_layout", FORMATS)
def test_step_uses_the_given_noise(device, layout, noise_layout):
    slots = Slots((2, 3, 5, 4), device, layout=layout)
    noise = images(slots.x.shape, device, torch.bfloat16, noise_layout, seed=9)
    slots.run_and_check(make_rows(device, full_row(8)), 0, noise=noise)


@pytest.mark.parametrize("layout", FORMATS)
def test_step_in_place(device, layout):
    rows = make_rows(device, full_row(9))
    apart, within = (Slots((2, 3, 5, 7), device, layout=layout) for _ in range(2))
    within.out = within.x
    assert torch.equal(apart.run_and_check(rows, 0), within.run_and_check(rows, 0))


@pytest.mark.parametrize("learned_variance", [False, True], ids=["fixed", "learned"])
@pytest.mark.parametrize("model_layout", ["nchw", "nhwc", "slice", "rows apart"])
@pytest.mark.parametrize("layout", FORMATS)
def test_step_reads_a_model_in_any_layout(device, layout, model_layout, learned_variance):
    slots = Slots((2, 3, 5, 6), device, layout=layout, channels=2)
    model = slots.model
    if model_layout in FORMATS:
        slots.model = model.contiguous(memory_format=FORMATS[model_layout])
    elif model_layout == "slice":
        slots.model = torch.cat([model, model], 1)[:, 3:9]
    else:
        slots.model = torch.cat([model, model], 3)[..., :6]
    slots.run_and_check(make_rows(device, full_row(10)), 0, learned_variance)


def test_step_takes_a_state_that_is_not_dense(device):
    slots = Slots((2, 3, 4, 4), device)
    slots.x = torch.cat([slots.x, slots.x], 1)[:, ::2]
    slots.run_and_check(make_rows(device, full_row(11)), 0)


@pytest.mark.parametrize("layout", FORMATS)
def test_step_takes_every_sample_at_its_own_row(device, layout):
    rows = make_rows(device, full_row(0), full_row(1, s=0, push=0), full_row(2, evaluate=0, save_base=0), full_row(3))
    slots = Slots((5, 3, 3, 4), device, layout=layout)
    slots.run_and_check(rows, torch.tensor([3, 1, 0, 2, 3], device=device))


@pytest.mark.parametrize("layout", FORMATS)
def test_step_gives_nan_for_a_row_out_of_range(device, layout):
    """In that sample alone; its base and history stay."""
    rows = make_rows(device, full_row(0), full_row(1))
    slots, valid = (Slots((5, 3, 3, 4), device, layout=layout) for _ in range(2))
    base, history = slots.base.clone(), slots.history.clone()
    row = torch.tensor([1, 2, 0, -1, 1 << 60], device=device)
    options = {"seed": SEED, "implementation": "triton"}
    ops.step(
        slots.x, slots.model, rows, row, base=slots.base, history=slots.history, pred_out=slots.pred, out=slots.out,
        **options,
    )  # fmt: skip
    ops.step(
        valid.x, valid.model, rows, row.clamp(0, 1), base=valid.base, history=valid.history, pred_out=valid.pred,
        out=valid.out, **options,
    )  # fmt: skip
    good, bad = [0, 2], [1, 3, 4]
    for ours, expected in ((slots.out, valid.out), (slots.pred, valid.pred)):
        assert ours[bad].isnan().all()
        assert torch.equal(ours[good], expected[good])
    assert torch.equal(slots.base[good], valid.base[good])
    assert torch.equal(slots.base[bad], base[bad])
    assert torch.equal(slots.history[:, good], valid.history[:, good])
    assert torch.equal(slots.history[:, bad], history[:, bad])


@pytest.mark.parametrize("layout", FORMATS)
def test_step_lets_nan_through_the_clamp(device, layout):
    """And infinities become the bound."""
    slots = Slots((1, 3, 4, 4), device, layout=layout)
    slots.x[0, 1, 2, 3], slots.x[0, 0, 0, 0], slots.x[0, 2, 0, 1] = torch.nan, torch.inf, -torch.inf
    row = full_row(12, px=1.0, cx=0, bx=0, clip=0.5, s=0)
    slots.run_and_check(make_rows(device, row), 0)
    assert int(slots.out.isnan().sum()) == int(slots.pred.isnan().sum()) == 1
    assert (slots.pred[0, 0, 0, 0], slots.pred[0, 2, 0, 1]) == (0.5, -0.5)


def test_step_with_ids_of_64_bits(device):
    slots = Slots((3, 1, 3, 3), device)
    ids = torch.tensor([(1 << 63) - 1, 1 << 32, (1 << 40) + 17], device=device)
    slots.run_and_check(make_rows(device, full_row(13)), 0, sample_ids=ids)


def test_step_reads_rows_and_ids_through_their_strides(device):
    rows = make_rows(device, full_row(0), full_row(1), full_row(2), full_row(3))
    ids, row = (torch.tensor(values, device=device)[::2] for values in ([1 << 33, 0, 7, 0], [1, 9, 0, 9]))
    slots = Slots((2, 3, 3, 4), device)
    slots.run_and_check(rows[::2], row, sample_ids=ids)


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("seed", [0, 7, SEED, 1 << 63, (1 << 32) + 5])
def test_step_reads_its_seed_from_memory(device, seed, layout):
    """In place of the scalar, as a captured launch must; so is the number of rows that count."""
    rows = make_rows(device, full_row(0), full_row(1))
    ids = torch.arange(2, device=device)
    results = []
    for pointers in (False, True):
        slots = Slots((2, 3, 5, 6), device, layout=layout)
        signed = seed - (1 << 64) if seed >= 1 << 63 else seed
        call = StepCall(
            slots.x, slots.model, rows, torch.tensor([1], device=device), None, ids, 99 if pointers else signed, False,
            slots.base, slots.history, slots.pred, slots.out,
        )  # fmt: skip
        given = {"seed": torch.tensor([signed], device=device), "num_rows": torch.tensor([2], device=device)}
        step.launch_step(call, **given if pointers else {})
        results.append((slots.out, slots.pred, slots.base, slots.history))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
    step.launch_step(call, num_rows=torch.tensor([1], device=device))
    assert slots.out.isnan().all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_step_of_nothing(device, shape):
    x = images(shape, device)
    out = ops.step(x, x.clone(), make_rows(device, full_row(0)), 0, implementation="triton")
    assert out.shape == shape


def test_step_refuses_float64(device):
    x = images((1, 1, 2, 2), device, torch.float64)
    with pytest.raises(ValueError, match="implementation='reference'"):
        ops.step(x, x, make_rows(device, full_row(0)).double(), 0, implementation="triton")


@pytest.mark.parametrize("case", ["eps fixed_small nchw", "v learned_range nhwc"])
@pytest.mark.parametrize("sampler", samplers.names())
def test_step_follows_every_sampler_row_by_row(device, sampler, case):
    prediction, variance, layout = case.split()
    # Little noise, so that no coefficient is large: the tolerance is for results, not for terms that cancel.
    diffusion = Diffusion(NoiseSchedule.linear(40, 1e-3, 0.15), prediction, variance)
    table = samplers.build(sampler, diffusion, steps=5)
    rows = ops.table_rows(table, device)
    slots = Slots((2, 3, 3, 4), device, layout=layout, depth=table.history_depth, channels=2)
    for slot in (slots.base, slots.history):
        if slot is not None:
            slot.fill_(torch.nan)
    for r in range(len(table)):
        slots.model = images(slots.model.shape, device, layout=layout, seed=20 + r)
        slots.run_and_check(rows, r, table.learned_variance)
        slots.x, slots.out = slots.out, slots.x
    assert slots.x.isfinite().all()
