"""Every op called directly, once as it should be and then with one argument altered.

Whatever is altered, an op raises, or reads and writes its arguments alone: they lie between guards of NaN, which must
stay and must not be seen in a result. FASTDIFF_FUZZ_CALLS sets the calls of each op; `make asan` runs more of them.
"""

import os
import random

import pytest
import torch

import fastdiff as fd
import fastdiff.engine.schemas
import fastdiff.nets.training_pass
import fastdiff.training.update
from fastdiff import ops
from fastdiff.nets.training_lowering import lower_training, planned_parameters
from fastdiff.process.table import CoefficientTable
from support.op_cases import full_table

pytestmark = pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built")

CALLS = int(os.environ.get("FASTDIFF_FUZZ_CALLS", "25"))
GUARD = 64
TYPES = (
    torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.uint8, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.bool, torch.complex64,
)  # fmt: skip
NUMBERS = (-(2**40), -7, -1, 0, 1, 2, 3, 5, 16, 255, 2**20, 2**31, 2**40, 2**62)


class Memory:
    """Makes tensors between guards."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.generator = torch.Generator().manual_seed(seed)
        self.layout = self.random.choice(["nchw", "nhwc"])
        self.guards = []

    def size(self, low=1, high=9):
        return self.random.randint(low, high)

    def floats(self, *shape, dtype=torch.float32):
        """Normal numbers, images in the call's layout."""
        values = torch.randn(shape, generator=self.generator)
        return self.place(values.to(dtype))

    def place(self, values):
        dims = (0, 2, 3, 1) if values.ndim == 4 and self.layout == "nhwc" else tuple(range(values.ndim))
        ordered = values.permute(dims)
        room = torch.full((values.numel() + 2 * GUARD,), torch.nan, dtype=values.dtype)
        room[GUARD : GUARD + values.numel()] = ordered.reshape(-1)
        self.guards.append(room)
        inverse = [dims.index(i) for i in range(values.ndim)]
        return room[GUARD : GUARD + values.numel()].view(ordered.shape).permute(inverse)

    def check(self):
        for room in self.guards:
            assert bool(room[:GUARD].isnan().all() and room[-GUARD:].isnan().all()), "an op wrote outside"


def indices(memory, count, length):
    return torch.tensor([memory.random.randrange(length) for _ in range(count)], dtype=torch.int64)


def step(m):
    shape = (m.size(1, 3), m.size(1, 5), m.size(), m.size())
    x = m.floats(*shape)
    wide = m.floats(shape[0], 2 * shape[1], *shape[2:])
    history = torch.stack([m.floats(*shape) for _ in range(3)])
    history = ops.new_history(x, 3).copy_(history)
    row = torch.tensor([m.random.choice([0, 2, 3, 5])])
    noise = m.floats(*shape) if m.random.random() < 0.5 else None
    out, pred, base = m.floats(*shape), m.floats(*shape), m.floats(*shape)
    return [
        x,
        wide,
        ops.table_rows(full_table()),
        row,
        noise,
        torch.arange(shape[0]),
        5,
        True,
        base,
        history,
        pred,
        out,
    ]


def diffuse(m):
    shape = (m.size(1, 3), m.size(1, 5), m.size(), m.size())
    table, t, ids = torch.randn(10, 4), indices(m, shape[0], 10), torch.arange(shape[0])
    noise = m.floats(*shape) if m.random.random() < 0.5 else None
    return [m.floats(*shape), t, table, noise, ids, torch.tensor([2]), 7, 2, 256, torch.float32, True]


def attention_out(m):
    batch, tokens, heads, d = m.size(1, 3), m.size(1, 70), m.size(1, 3), 16 * m.size(1, 3)
    m.layout = "nchw"
    qkv, out = m.floats(batch, tokens, 3 * heads * d), m.floats(batch, tokens, heads * d)
    return [qkv, heads, m.random.random() < 0.5, 0.25, out, m.floats(batch, heads, tokens)]


def attention_backward_out(m):
    qkv, heads, heads_first, scale, out, lse = attention_out(m)
    torch.ops.fastdiff.attention_out(qkv, heads, heads_first, scale, out, lse)
    return [m.floats(*out.shape), qkv, out, lse, heads, heads_first, scale, m.floats(*qkv.shape)]


def dropout_out(m):
    shape = (m.size(1, 3), m.size(1, 5), m.size(), m.size())
    ids = torch.arange(shape[0]) if m.random.random() < 0.5 else None
    return [m.floats(*shape), torch.tensor([3]), ids, 4, 2**31, 2.0, m.floats(*shape)]


def conv3x3_out(m):
    m.layout = "nhwc"
    batch, rows, columns, height, width = m.size(1, 3), 16 * m.size(1, 3), 16 * m.size(1, 3), m.size(), m.size()
    weight, bias = m.floats(columns, rows, 3, 3), m.floats(columns)
    residual = m.floats(batch, columns, height, width) if m.random.random() < 0.5 else None
    return [
        m.floats(batch, rows, height, width),
        weight,
        bias,
        residual,
        False,
        m.floats(batch, columns, height, width),
    ]


def conv3x3_weight_grad(m):
    m.layout = "nhwc"
    batch, rows, columns, height, width = m.size(1, 3), m.size(1, 40), m.size(1, 40), m.size(), m.size()
    x, grad = m.floats(batch, rows, height, width), m.floats(batch, columns, height, width)
    return [x, grad, m.floats(columns, rows, 3, 3)]


def conv3x3(m):
    return conv3x3_out(m)[:4]


def conv3x3_backward(m):
    x, weight, _, _, _, out = conv3x3_out(m)
    return [out, x, weight, True]


def linear_out(m):
    rows, channels_in, channels_out = m.size(), m.size(1, 40), m.size(1, 70)
    values = [m.floats(rows, channels_in), m.floats(channels_out, channels_in), m.floats(channels_out)]
    residual = m.floats(rows, channels_out) if m.random.random() < 0.5 else None
    return [*values, residual, False, m.floats(rows, channels_out)]


def linear_weight_grad(m):
    rows, channels_in, channels_out = m.size(1, 80), m.size(1, 40), m.size(1, 40)
    return [m.floats(rows, channels_in), m.floats(rows, channels_out), m.floats(channels_out, channels_in)]


def linear(m):
    return linear_out(m)[:4]


def linear_backward(m):
    x, weight, _, _, _, out = linear_out(m)
    return [out, x, weight, True]


def column_sums_out(m):
    columns = m.size(1, 40)
    return [m.floats(m.size(1, 300), columns), m.floats(columns)]


def column_sums(m):
    return column_sums_out(m)[:1]


def group_norm_act_cpu(m):
    batch, groups = m.size(1, 3), m.size(1, 4)
    first, second, size = groups * m.size(1, 3), groups * m.size(0, 2), (m.size(), m.size())
    channels = first + second
    x2 = m.floats(batch, second, *size) if second else None
    residual = None if second else m.floats(batch, channels, *size)
    vectors = [m.floats(channels), m.floats(batch, channels), m.floats(channels), m.floats(channels)]
    scaled = [m.floats(batch, channels), m.floats(batch, channels)] if m.random.random() < 0.5 else [None, None]
    return [m.floats(batch, first, *size), x2, residual, *vectors, *scaled, groups, 1e-5, True]


def group_norm_act_backward_cpu(m):
    x, x2, residual, *rest, groups, _, act = group_norm_act_cpu(m)
    total = m.floats(x.shape[0], rest[0].shape[0], *x.shape[2:])
    grad_sum = None if residual is None else residual
    moments = [m.floats(x.shape[0], groups), m.floats(x.shape[0], groups)]
    return [total, grad_sum, x, x2, *rest, *moments, act, True]


def losses(m):
    batch, channels, size = m.size(1, 3), m.size(1, 5), (m.size(), m.size())
    table = torch.rand(10, 6) * torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0, 1.0])
    output = m.floats(batch, 2 * channels, *size)
    images = [m.floats(batch, channels, *size) for _ in range(3)]
    return output, *images, indices(m, batch, 10), table


def bound_loss(m):
    output, target, x0, x_t, t, table = losses(m)
    return [output, target, x0, x_t, t, table, None, True, True, "discrete", 256]


def bound_loss_backward(m):
    output, *rest = bound_loss(m)
    return [output, m.floats(output.shape[0]), m.floats(output.shape[0]), *rest]


def bound_terms(m):
    output, _, x0, x_t, t, table = losses(m)
    return [output, x0, x_t, t, table, 1.0, True, "gaussian", 256]


def mse(m):
    output = losses(m)[0]
    return [output, m.floats(*output.shape)]


def mse_backward(m):
    output, target = mse(m)
    return [m.floats(output.shape[0]), output, target]


def update(m):
    shapes = [(m.size(1, 5), m.size(1, 5)), (m.size(1, 40),), (m.size(1, 3), m.size(1, 3), 3, 3)]
    tensors = [[m.floats(*shape) for shape in shapes] for _ in range(5)]
    for square in tensors[3]:
        square.abs_()
    return [*tensors, 0.5, 0.9, 0.9, 0.99, 0.5, 1e-8, 1e-3, 0.1]


def gradient_norms_out(m):
    return [[m.floats(m.size(1, 5), m.size(1, 5)), m.floats(m.size(1, 40))], m.floats(2)]


def posterior_mean(m):
    shape = (m.size(1, 3), m.size(1, 5), m.size(), m.size())
    return [m.floats(*shape), m.floats(*shape), indices(m, shape[0], 10), torch.randn(10, 4), 1.0]


def compiled():
    torch.manual_seed(0)
    config = fd.UNetConfig(
        image_size=8, in_channels=2, out_channels=2, channels=16, channel_mult=(1, 2), num_res_blocks=1, norm_groups=4,
        attention_resolutions=(4,), num_heads=2, dropout=0.0,
    )  # fmt: skip
    network = fd.compile(fd.UNet(config).eval())
    network.training = lower_training(network.unet, 8, 8)
    return network


@pytest.fixture(scope="module")
def network():
    return compiled()


def plan_forward(m, network):
    m.layout = "nhwc"
    batch = m.size(1, 3)
    x, p = m.floats(batch, 2, 8, 8), network.prepare(batch, 8, 8)
    times = network.times(torch.zeros(1, dtype=torch.int64))
    return [x, p.code, network.weights(8, 8), times, *p.memory, m.floats(batch, 2, 8, 8)]


def plan_sample(m, network):
    x, code, weights, times, *places, out = plan_forward(m, network)
    table = CoefficientTable({"t": [1.0, 0.0], "cx": [0.9, 0.8], "cm": [0.1, 0.1]})
    times = torch.stack([times, times])
    ids = torch.arange(x.shape[0])
    rest = [ops.table_rows(table), torch.arange(2), 0, 2, 0, ids, 3, False, None, None, m.floats(*x.shape)]
    return [x, code, weights, times, *places, out, *rest]


def plan_pack(m):
    channels, channels_out = m.size(1, 40), m.size(1, 80)
    weight = m.floats(channels_out, channels, 9)
    return [weight, torch.zeros(36 * -(-channels_out // 64) * 64 * channels), 1, False]


def plan_scratch(m, network):
    p = network.prepare(2, 8, 8)
    return [p.code, 2, p.part, p.lanes]


def training_run(m, network):
    m.layout = "nhwc"
    plan, batch = network.training, m.size(1, 3)
    parameters = [m.place(p.detach()) for p in planned_parameters(network.unet)]
    gradients = [m.floats(*p.shape) for p in parameters]
    code = torch.cat([plan.forward, plan.backward])
    seeds = indices(m, 5, 10**6)
    arena = torch.zeros(plan.floats * batch)
    alone = len(plan.forward) + (plan.alone or 0)
    return [code, parameters, gradients, arena, batch, seeds, torch.arange(batch), 3, alone]


PLANS = {f.__name__: f for f in (plan_forward, plan_sample, plan_scratch, training_run)}
CODE = {"plan_scratch": 0, "training_run": 0}
BUILDERS = {
    f.__name__: f
    for f in (
        step, diffuse, attention_out, attention_backward_out, dropout_out, conv3x3, conv3x3_backward, conv3x3_out,
        conv3x3_weight_grad, group_norm_act_cpu, group_norm_act_backward_cpu, linear, linear_backward, linear_out,
        linear_weight_grad, column_sums, column_sums_out, plan_pack, bound_loss, bound_loss_backward, bound_terms, mse,
        mse_backward, posterior_mean, update, gradient_norms_out,
    )
} | PLANS  # fmt: skip
# In Python: they check their call, and hand it to an op above or to PyTorch.
IN_PYTHON = {
    "attention", "attention_backward", "conv2d_fused", "dropout", "group_norm_act", "group_norm_act_backward",
}  # fmt: skip


def test_fuzz_knows_every_op():
    names = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("fastdiff::")}
    assert {name.removeprefix("fastdiff::") for name in names} == set(BUILDERS) | IN_PYTHON


def altered(m, value, others):
    """Something else of the kind of a value: another shape, layout, type, or place in memory; another number."""
    pick = m.random.choice
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return type(value)(pick(NUMBERS)) if isinstance(value, int) else pick([-1.0, 0.0, 1e-30, torch.inf, torch.nan])
    if isinstance(value, str):
        return pick(["", "other", "gaussian"])
    if isinstance(value, torch.dtype):
        return pick(TYPES)
    if isinstance(value, list):
        number = m.random.randrange(len(value))
        other = altered(m, value[number], others)
        return value[:-1] if other is None else [*value[:number], other, *value[number + 1 :]]
    if value is None:
        return m.floats(*pick([(1,), (2, 3), (2, 3, 4, 4)]))
    dim = m.random.randrange(value.ndim) if value.ndim else 0
    tensors = [other for other in others if isinstance(other, torch.Tensor) and other is not value and other.numel()]
    same_type = [other for other in tensors if other.dtype == value.dtype]
    kinds = {
        "none": lambda: None,
        "empty": lambda: value[:0],
        "shorter": lambda: value.narrow(dim, 0, value.shape[dim] - 1),
        "one": lambda: value.narrow(dim, 0, min(1, value.shape[dim])),
        "longer": lambda: torch.cat([value, value], dim),
        "flat": lambda: value.reshape(-1),
        "deeper": lambda: value[None],
        "expanded": lambda: value.flatten()[:1].expand(value.shape),
        "every second": lambda: torch.cat([value, value], dim).index_select(dim, torch.arange(value.shape[dim])),
        "strided": lambda: torch.stack([value, value], -1)[..., 0],
        "transposed": lambda: value.transpose(dim, -1),
        "turned": lambda: value.transpose(dim, -1).contiguous().transpose(dim, -1),
        "type": lambda: value.to(pick(TYPES)),
        "values": lambda: value.clone().index_fill_(dim, torch.tensor([0]), pick((-1, 0, 1, 3, 17, 10**6))),
        "none of a dimension": lambda: value.narrow(dim, 0, 0),
        "folded": lambda: value.as_strided(value.shape, [1] * value.ndim),
        "repeated": lambda: value[:1].expand(value.shape) if value.ndim else value,
        "upside down": lambda: value.flip(dim),
        "negated": lambda: torch._neg_view(value),
        "without memory": lambda: value.to("meta"),
        "sparse": lambda: value.to_sparse(),
        "leaf": lambda: value.detach().clone().requires_grad_(),
        "another": lambda: pick(tensors),
        "overlapping": lambda: pick(same_type).flatten()[1 : 1 + value.numel()].view(value.shape),
    }
    if value.dtype == torch.int64 and value.ndim == 2:
        kinds = {"number": lambda: one_number(m, value)} | {name: kinds[name] for name in ("empty", "type", "strided")}
        if m.random.random() < 0.9:
            return kinds["number"]()
    return kinds[pick(list(kinds))]()


def one_number(m, code):
    """A plan with one number of one instruction changed."""
    code = code.clone()
    place = m.random.randrange(code.numel())
    code.view(-1)[place] = m.random.choice([*NUMBERS, int(code.view(-1)[place]) + m.random.choice([-1, 1, 16, 64])])
    return code


def run(name, arguments):
    """The op's floating-point results, those that it returns and those that it writes."""
    op = getattr(torch.ops.fastdiff, name).default
    results = op(*arguments)
    written = [
        value
        for value, argument in zip(arguments, op._schema.arguments, strict=True)
        if argument.alias_info is not None and argument.name not in ("arena", "scratch")
    ]
    returned = results if isinstance(results, tuple) else (results,)
    return [r for r in (*returned, *written) if isinstance(r, torch.Tensor) and r.is_floating_point()]


@pytest.mark.parametrize("name", BUILDERS)
def test_fuzz(name, network):
    build = BUILDERS[name]
    raised = 0
    for call in range(CALLS):
        m = Memory(1000 * call + len(name))
        arguments = build(m, network) if name in PLANS else build(m)
        for result in run(name, arguments):
            assert not bool(result.isnan().any()), "a result read a guard"
        m.check()
        m = Memory(1000 * call + len(name))
        arguments = build(m, network) if name in PLANS else build(m)
        place = m.random.randrange(len(arguments))
        if name in PLANS and m.random.random() < 0.5:
            place = CODE.get(name, 1)
        try:
            changed = [*arguments]
            changed[place] = altered(m, arguments[place], arguments)
            run(name, changed)
        # AttributeError: PyTorch gives an op that is written in Python None where a tensor was due.
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            raised += 1
        m.check()
    assert raised > 0


@pytest.mark.parametrize("place", ["weights", "arena", "code"])
def test_plan_sample_refuses_a_prediction_over_what_it_reads(place, network):
    arguments = plan_sample(Memory(0), network)
    names = [argument.name for argument in torch.ops.fastdiff.plan_sample.default._schema.arguments]
    x, over = arguments[0], arguments[names.index(place)]
    floats = over.clone().view(torch.float32).flatten()
    arguments[names.index(place)] = floats.view(over.dtype).view(over.shape)
    arguments[names.index("pred_out")] = torch.as_strided(floats, x.shape, x.stride())
    with pytest.raises(RuntimeError, match="overlaps"):
        run("plan_sample", arguments)
