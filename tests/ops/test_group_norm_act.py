"""group_norm_act: the reference against PyTorch's own group norm in float64, its gradients, and what it refuses."""

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fastdiff import ops
from fastdiff.calls import GroupNormActCall
from fastdiff.nets.unet import GroupNormAct, UNet, UNetConfig
from fastdiff.ops.reference import group_norm_act as reference_norm
from support.tolerances import FLOAT32, FLOAT32_DEEP, FLOAT32_FEW, FLOAT32_SUM, FLOAT64, STORAGE

FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}
# Shape, channels of the second source, groups. In the last two with a second source, groups straddle the sources.
SHAPES = [
    ((1, 1, 1, 1), 0, 1),
    ((2, 6, 5, 7), 0, 3),
    ((2, 32, 8, 8), 0, 8),
    ((3, 4, 1, 1), 0, 2),
    ((2, 6), 0, 2),
    ((2, 6, 63), 0, 3),
    ((1, 6, 2, 3, 4), 0, 2),
    ((2, 4, 5, 3), 8, 3),
    ((2, 5, 5, 3), 7, 3),
    ((1, 7, 4, 4), 5, 6),
]
OPTIONS = {"plain": (), "scale": ("scale", "shift"), "all": ("scale", "shift", "added_bias", "added_time")}


def random(shape, seed, dtype=torch.float64, layout="nchw", offset=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    x = x.to(dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


def inputs(shape, second, names, dtype=torch.float64, vector_dtype=None, layout="nchw"):
    """x, weight, bias and the keyword arguments, all different."""
    channels = shape[1] + second
    vector_dtype = vector_dtype or dtype
    weight, bias = random((channels,), 1, vector_dtype, offset=1.0), random((channels,), 2, vector_dtype)
    options = {}
    for seed, name in enumerate(names, start=3):
        of = (channels,) if name == "added_bias" else (shape[0], channels)
        options[name] = random(of, seed, vector_dtype)
    if second:
        options["x2"] = random((shape[0], second, *shape[2:]), 9, dtype, layout, offset=-2.0)
    return random(shape, 0, dtype, layout, offset=0.5), weight, bias, options


def by_pytorch(x, weight, bias, groups, *, eps, act, scale=None, shift=None, x2=None, added_bias=None, added_time=None):
    """float64, from torch.nn.functional."""

    def spread(v):
        return v.double().reshape(*v.shape, *[1] * (x.ndim - 2))

    h = x.double() if x2 is None else torch.cat((x.double(), x2.double()), dim=1)
    h = h if added_bias is None else h + spread(added_bias[None])
    h = h if added_time is None else h + spread(added_time)
    # Two of everything: F.group_norm refuses a single value per group.
    twice = F.group_norm(torch.stack((h, h), dim=-1), groups, weight.double(), bias.double(), eps)
    u = twice[..., 0]
    if scale is not None:
        u = u * (1 + spread(scale)) + spread(shift)
    return F.silu(u) if act else u


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("names", OPTIONS)
@pytest.mark.parametrize(("shape", "second", "groups"), SHAPES, ids=str)
@pytest.mark.parametrize("implementation", ["reference", "cpu"])
def test_group_norm_act_matches_pytorch_in_float64(shape, second, groups, names, dtype, layout, implementation):
    # float32 parameters beside 16-bit activations, as under autocast.
    vectors = torch.float64 if dtype == "float64" else torch.float32
    x, weight, bias, options = inputs(shape, second, OPTIONS[names], DTYPES[dtype], vectors, layout)
    for act in (True, False):
        y = ops.group_norm_act(x, weight, bias, groups, eps=1e-3, act=act, implementation=implementation, **options)
        exact = by_pytorch(x, weight, bias, groups, eps=1e-3, act=act, **options)
        assert y.dtype == x.dtype
        assert y.shape == exact.shape
        assert y.is_contiguous(memory_format=ops.memory_format(x))
        bound = STORAGE[dtype] * exact.abs() + (FLOAT64 if dtype == "float64" else 5 * FLOAT32)
        assert bool(((y.double() - exact).abs() <= bound).all())


@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_withstands_an_offset(layout):
    """A mean of a thousand deviations: E[x^2] - E[x]^2 would leave no digit in float32."""
    x = random((2, 8, 16, 16), 0, torch.float32, layout) + 1000
    weight, bias = torch.ones(8), torch.zeros(8)
    y = ops.group_norm_act(x, weight, bias, 2, eps=1e-6, act=False)
    exact = by_pytorch(x, weight, bias, 2, eps=1e-6, act=False)
    # One rounding of the mean: 3e-5 of a thousand.
    assert float((y.double() - exact).abs().max()) < FLOAT32_DEEP


@pytest.mark.parametrize("dtype", DTYPES)
def test_add_group_norm_act_normalises_the_sum_that_it_writes(dtype):
    vectors = torch.float64 if dtype == "float64" else torch.float32
    x, weight, bias, options = inputs((2, 6, 5, 7), 0, OPTIONS["all"], DTYPES[dtype], vectors, "nhwc")
    residual = random(x.shape, 20, x.dtype, "nhwc")
    y, total = ops.add_group_norm_act(x, residual, weight, bias, 3, **options)
    added = (
        options.pop("added_bias")[None, :, None, None].double() + options.pop("added_time")[..., None, None].double()
    )
    exact_sum = x.double() + residual.double() + added
    assert bool(((total.double() - exact_sum).abs() <= STORAGE[dtype] * (1 + exact_sum.abs())).all())
    assert total.dtype == y.dtype == x.dtype
    assert total.stride() == y.stride() == x.stride()
    assert torch.equal(y, ops.group_norm_act(total, weight, bias, 3, **options))


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("names", OPTIONS)
@pytest.mark.parametrize(
    ("shape", "second", "groups"), [((2, 4, 3, 2), 0, 2), ((2, 3, 5), 3, 2), ((2, 4), 0, 1)], ids=str
)
def test_group_norm_act_gradients_are_those_of_finite_differences(shape, second, groups, names, act):
    x, weight, bias, options = inputs(shape, second, OPTIONS[names])
    order = list(options)
    values = [v.requires_grad_() for v in (x, weight, bias, *options.values())]

    def run(x, weight, bias, *rest):
        return ops.group_norm_act(x, weight, bias, groups, act=act, **dict(zip(order, rest, strict=True)))

    assert torch.autograd.gradcheck(run, values)


def test_add_group_norm_act_gradients_are_those_of_finite_differences():
    x, weight, bias, options = inputs((2, 4, 3, 2), 0, OPTIONS["all"])
    residual, order = random(x.shape, 20), list(options)
    values = [v.requires_grad_() for v in (x, residual, weight, bias, *options.values())]

    def run(x, residual, weight, bias, *rest):
        return ops.add_group_norm_act(x, residual, weight, bias, 2, **dict(zip(order, rest, strict=True)))

    assert torch.autograd.gradcheck(run, values)
    assert torch.autograd.gradcheck(lambda *v: run(*v)[1], values)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_group_norm_act_gradients_have_the_types_of_their_tensors(dtype):
    x, weight, bias, options = inputs((2, 4, 3, 5), 4, OPTIONS["all"], DTYPES[dtype], torch.float32, "nhwc")
    options["scale"] = options["scale"].to(DTYPES[dtype])
    values = [v.requires_grad_() for v in (x, weight, bias, *options.values())]
    y = ops.group_norm_act(x, weight, bias, 4, **options)
    grad_y = random(y.shape, 30, y.dtype)
    found = torch.autograd.grad(y, values, grad_y)
    doubles = [v.detach().double().requires_grad_() for v in values]
    names = dict(zip(options, doubles[3:], strict=True))
    exact_y = by_pytorch(*doubles[:3], 4, eps=1e-5, act=True, **names)
    exact = torch.autograd.grad(exact_y, doubles, grad_y.double())
    for value, ours, theirs in zip(values, found, exact, strict=True):
        assert ours.dtype == value.dtype
        assert ours.shape == value.shape
        rounding = STORAGE[str(ours.dtype).removeprefix("torch.")]
        assert bool(((ours.double() - theirs).abs() <= rounding * theirs.abs() + FLOAT32_SUM).all())


def assert_gradients_match_float64(op, values, grads, *, relative=0.0):
    """Of `op(*values)`, in the types of the values, against the same in float64."""
    found = torch.autograd.grad(op(*values), values, grads)
    doubles = [v.detach().double().requires_grad_() for v in values]
    exact = torch.autograd.grad(op(*doubles), doubles, [g.double() for g in grads])
    for value, ours, theirs in zip(values, found, exact, strict=True):
        assert ours.dtype == value.dtype
        rounding = STORAGE[str(ours.dtype).removeprefix("torch.")] + relative
        # Sums over pixels and samples: a few float32 roundings of their largest term.
        assert bool(
            ((ours.double() - theirs).abs() <= rounding * theirs.abs() + FLOAT32_SUM * theirs.abs().max()).all()
        )


# What the C++ cuts in its own way: channels not in sixteens, blocks of several groups, more pixels than a chunk.
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("names", OPTIONS)
@pytest.mark.parametrize(
    ("shape", "second", "groups"),
    [
        ((2, 6, 5, 7), 0, 3),
        ((2, 32, 9, 8), 0, 8),
        ((3, 96, 13, 11), 0, 32),
        ((1, 130, 6, 5), 70, 4),
        ((2, 5, 5, 3), 7, 3),
    ],
    ids=str,
)
def test_group_norm_act_gradients_match_float64(shape, second, groups, names, dtype, layout):
    x, weight, bias, options = inputs(shape, second, OPTIONS[names], DTYPES[dtype], torch.float32, layout)
    order = list(options)
    values = [v.requires_grad_() for v in (x, weight, bias, *options.values())]
    for act in (True, False):

        def run(x, weight, bias, *rest, act=act):
            named = dict(zip(order, rest, strict=True))
            return (ops.group_norm_act(x, weight, bias, groups, act=act, **named),)

        grad = random((shape[0], shape[1] + second, *shape[2:]), 30, x.dtype, layout)
        assert_gradients_match_float64(run, values, [grad])


@pytest.mark.parametrize("layout", FORMATS)
def test_add_group_norm_act_gradients_match_float64(layout):
    x, weight, bias, options = inputs((2, 48, 9, 7), 0, OPTIONS["all"], torch.float32, layout=layout)
    residual, order = random(x.shape, 20, x.dtype, layout), list(options)
    values = [v.requires_grad_() for v in (x, residual, weight, bias, *options.values())]

    def run(x, residual, weight, bias, *rest):
        return ops.add_group_norm_act(x, residual, weight, bias, 6, **dict(zip(order, rest, strict=True)))

    grads = [random(x.shape, seed, x.dtype, layout) for seed in (30, 31)]
    assert_gradients_match_float64(run, values, grads)


def test_group_norm_act_of_a_sample_does_not_depend_on_its_batch_or_the_threads():
    x, weight, bias, _ = inputs((5, 96, 12, 9), 0, (), torch.float32, layout="nhwc")
    threads = torch.get_num_threads()
    whole = ops.group_norm_act(x, weight, bias, 32)
    try:
        torch.set_num_threads(3)
        assert torch.equal(ops.group_norm_act(x, weight, bias, 32), whole)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(ops.group_norm_act(x[3:4], weight, bias, 32), whole[3:4])


def test_group_norm_act_has_no_second_derivative():
    x, weight, bias, _ = inputs((1, 4, 3, 2), 0, ())
    y = ops.group_norm_act(x.requires_grad_(), weight, bias, 2)
    grad = torch.autograd.grad(y.sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="no second derivative"):
        grad.sum().backward()


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_of_nothing(shape, layout):
    x, weight, bias, options = inputs(shape, 0, OPTIONS["all"], torch.float32, layout=layout)
    values = [v.requires_grad_() for v in (x, weight, bias, *options.values())]
    y = ops.group_norm_act(x, weight, bias, 2, **options)
    assert y.shape == shape
    for value, grad in zip(values, torch.autograd.grad(y.sum(), values), strict=True):
        assert torch.equal(grad, torch.zeros_like(value))


def test_group_norm_act_of_a_view_that_is_not_dense():
    x, weight, bias, _ = inputs((2, 8, 5, 8), 0, ())
    view = x[:, ::2, :, 1:7]
    y = ops.group_norm_act(view, weight[:4], bias[:4], 2)
    assert y.is_contiguous()
    assert torch.equal(y, ops.group_norm_act(view.contiguous(), weight[:4], bias[:4], 2))


def test_group_norm_act_takes_halves_of_a_projection():
    """scale and shift as views of one tensor, as a layer gives them."""
    x, weight, bias, options = inputs((2, 4, 3, 3), 0, OPTIONS["scale"])
    projection = torch.cat(list(options.values()), dim=1)
    scale, shift = projection.chunk(2, dim=1)
    assert torch.equal(
        ops.group_norm_act(x, weight, bias, 2, scale=scale, shift=shift),
        ops.group_norm_act(x, weight, bias, 2, **options),
    )


def test_group_norm_act_passes_opcheck():
    opcheck = torch.library.opcheck
    for names in OPTIONS.values():
        for second, layout, residual in ((0, "nhwc", False), (2, "nchw", False), (0, "nchw", True), (2, "nhwc", False)):
            x, weight, bias, options = inputs((2, 4, 3, 3), second, names, torch.float32, layout=layout)
            rest = [options.get(name) for name in ("added_bias", "added_time")]
            modulation = [options.get(name) for name in ("scale", "shift")]
            values = [x, options.get("x2"), random(x.shape, 20, x.dtype, layout) if residual else None, *rest]
            values = [None if v is None else v.requires_grad_() for v in (*values, weight, bias, *modulation)]
            opcheck(torch.ops.fastdiff.group_norm_act.default, (*values, 2, 1e-5, True))
            mean = torch.zeros(2, 2)
            detached = [None if v is None else v.detach() for v in values]
            grads = (torch.ones(2, 4 + second, 3, 3), detached[2])
            arguments = (*grads, *detached[:2], *detached[3:], mean, mean + 1, True, len(names) > 2)
            opcheck(torch.ops.fastdiff.group_norm_act_backward.default, arguments)


def test_group_norm_act_compiles_without_graph_breaks():
    x, weight, bias, options = inputs((2, 4, 3, 5), 4, OPTIONS["all"], torch.float32, layout="nhwc")
    values = [v.requires_grad_() for v in (x, weight, bias, *options.values())]

    def run():
        y = ops.group_norm_act(x, weight, bias, 4, **options)
        return y, *ops.add_group_norm_act(y, y * 2, weight, bias, 2)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    for ours, eager in zip(compiled(), run(), strict=True):
        assert torch.equal(ours, eager)
        assert ours.stride() == eager.stride()
    weights = [random(y.shape, seed) for seed, y in enumerate(run())]

    def loss(results):
        return sum((y * w).sum() for y, w in zip(results, weights, strict=True))

    ours, eager = (torch.autograd.grad(loss(results), values) for results in (compiled(), run()))
    for one, other in zip(ours, eager, strict=True):
        assert torch.allclose(one, other, rtol=FLOAT32_SUM, atol=FLOAT32_FEW)


@pytest.mark.parametrize("compiled", [False, True])
def test_group_norm_act_under_autocast_keeps_the_type_of_x(compiled):
    layer = torch.nn.Conv2d(4, 4, 1)
    weight, bias = torch.ones(4, requires_grad=True), torch.zeros(4)

    def run(x):
        with torch.autocast("cpu", torch.bfloat16):
            return ops.group_norm_act(layer(x), weight, bias, 2)

    run = torch.compile(run, fullgraph=True, backend="aot_eager") if compiled else run
    y = run(random((2, 4, 3, 3), 0, torch.float32))
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert weight.grad.dtype == torch.float32
    assert layer.weight.grad is not None


GOOD = {"shape": (2, 4, 3, 3), "second": 0, "names": OPTIONS["all"]}
BAD = {
    "groups must divide": {"groups": 3},
    "groups must divide the number of channels, 4, got 0": {"groups": 0},
    "eps must be at least 0": {"eps": -1.0},
    "eps must be at least 0, got nan": {"eps": float("nan")},
    "given together": {"shift": None},
    "x must be float32": {"x": torch.zeros(2, 4, 3, 3, dtype=torch.int32)},
    r"x must be \[B, C": {"x": torch.zeros(4, dtype=torch.float64)},
    r"weight must be \[4\]": {"weight": torch.ones(5, dtype=torch.float64)},
    "weight of torch.float32": {"weight": torch.ones(4)},
    "bias of torch.int64": {"bias": torch.ones(4, dtype=torch.int64)},
    "bias must be .* on cpu, got .* on meta": {"bias": torch.ones(4, dtype=torch.float64, device="meta")},
    r"scale must be \[2, 4\]": {"scale": torch.ones(4, dtype=torch.float64)},
    r"added_bias must be \[4\]": {"added_bias": torch.ones(2, 4, dtype=torch.float64)},
    r"added_time must be \[2, 4\]": {"added_time": torch.ones(1, 4, dtype=torch.float64)},
    "x2 must have as many dimensions": {"x2": torch.ones(2, 4, 9, dtype=torch.float64)},
    "x2 must be torch.float64": {"x2": torch.ones(2, 4, 3, 3)},
    "x2 must be .* on cpu, as x, got .* on meta": {"x2": torch.ones(2, 4, 3, 3, dtype=torch.float64, device="meta")},
}


@pytest.mark.parametrize("message", BAD)
def test_group_norm_act_refuses(message):
    x, weight, bias, options = inputs(**GOOD)
    arguments = {"x": x, "weight": weight, "bias": bias, "groups": 2} | options | BAD[message]
    with pytest.raises(ValueError, match=message):
        ops.group_norm_act(**arguments)


@pytest.mark.parametrize("residual", [torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 1, dtype=torch.float64)])
def test_add_group_norm_act_refuses_a_residual_that_does_not_fit(residual):
    x, weight, bias, _ = inputs(**GOOD)
    with pytest.raises(ValueError, match="residual must be"):
        ops.add_group_norm_act(x, residual, weight, bias, 2)


def test_group_norm_act_by_name():
    x, weight, bias, options = inputs(**GOOD)
    found = ops.group_norm_act(x, weight, bias, 2, implementation="cpu", **options)
    assert torch.equal(found, ops.group_norm_act(x, weight, bias, 2, **options))
    with pytest.raises(ValueError, match="implementation must be"):
        ops.group_norm_act(x, weight, bias, 2, implementation="fast")


def test_reference_statistics_are_those_of_the_groups():
    x, weight, bias, _ = inputs((2, 6, 4, 5), 0, ())
    nothing = (None,) * 4
    call = GroupNormActCall(x, *nothing, weight, bias, None, None, 3, 1e-5, True)
    _, h, mean, rstd = reference_norm.group_norm_act(call)
    grouped = x.reshape(2, 3, 40)
    assert torch.equal(h, x)
    assert torch.allclose(mean, grouped.mean(2), rtol=0, atol=FLOAT64)
    assert torch.allclose(rstd, (grouped.var(2, correction=0) + 1e-5).rsqrt(), rtol=0, atol=FLOAT64)


def by_pytorch_ops(norm, x, scale=None, shift=None, added=None):
    """The formula of `GroupNormAct.forward` without the op, in float32 as well."""
    options = {"eps": norm.eps, "act": norm.act, "scale": scale, "shift": shift, "added_time": added}
    arguments = (norm.weight, norm.bias, norm.groups)
    return ops.group_norm_act(x, *arguments, implementation="reference", **options)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_group_norm_module_is_the_op(device):
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, op, types, args=(), kwargs=None):
            called.append(op)
            return op(*args, **(kwargs or {}))

    with FakeTensorMode(), torch.no_grad(), Record():
        norm = GroupNormAct(32, 8, 1e-6)
        norm.weight, norm.bias = (torch.nn.Parameter(torch.empty(32, device=device)) for _ in range(2))
        options = {"dtype": torch.bfloat16, "device": device}
        x = torch.empty(2, 32, 4, 4, memory_format=torch.channels_last, **options)
        y = norm(x, *torch.empty(2, 64, **options).chunk(2, dim=1))
    assert torch.ops.fastdiff.group_norm_act.default in called
    assert (y.shape, y.dtype, y.device, y.stride()) == (x.shape, x.dtype, x.device, x.stride())


def test_unet_with_the_op_trains_compiled_and_under_autocast(monkeypatch):
    config = UNetConfig(
        image_size=8, channels=16, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(4,), norm_groups=4,
        scale_shift_norm=True, dropout=0.0,
    )  # fmt: skip
    unet = UNet(config)
    for seed, parameter in enumerate(unet.parameters()):
        parameter.data = random(parameter.shape, seed, torch.float32) * 0.1
    x, t = random((2, 3, 8, 8), 0, torch.float32), torch.tensor([3, 900])

    def train(run):
        for parameter in unet.parameters():
            parameter.grad = None
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(x, t).float().square().mean()
        loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in unet.parameters()])

    monkeypatch.setattr(GroupNormAct, "forward", by_pytorch_ops)
    expected = train(unet)
    monkeypatch.undo()
    for run in (unet, torch.compile(unet, fullgraph=True, backend="aot_eager")):
        # bfloat16 keeps 8 bits, and both paths round in the same places but for the order of their sums.
        assert float((train(run) - expected).norm() / expected.norm()) < 2 * STORAGE["bfloat16"]
