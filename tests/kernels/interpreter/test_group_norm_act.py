"""The Triton kernels of group_norm_act against the reference in float64, on the same rounded inputs."""

import copy

import pytest
import torch

from fastdiff import ops
from fastdiff.calls import GroupNormActBackwardCall, GroupNormActCall
from fastdiff.kernels import group_norm_act, group_norm_act_backward, group_norm_tiles
from fastdiff.ops.reference import group_norm_act as reference_norm
from support.triton_cases import DTYPES, FORMATS, assert_near

# Shape, channels of the second source, groups: one pixel, 63 and 65 pixels, groups that are no power of two wide.
SHAPES = [
    ((1, 1, 1, 1), 0, 1),
    ((3, 6, 1, 1), 0, 3),
    ((2, 6, 7, 9), 0, 3),
    ((2, 8, 5, 13), 0, 2),
    ((1, 48, 4, 4), 0, 4),
    ((2, 40, 3, 5), 0, 8),
    ((1, 128, 3, 3), 0, 32),
    ((2, 6), 0, 2),
    ((2, 6, 65), 0, 3),
]
# Of these the first two have groups on the border of the sources, and the last one none of whose programs crosses it.
TWO_SOURCES = [((2, 7, 5, 3), 5, 3), ((1, 40, 3, 5), 8, 4), ((2, 8, 4, 4), 8, 4), ((2, 3, 65), 3, 2)]
TWO_SOURCES += [((2, 8, 33, 31), 8, 4)]
EVERYTHING = ("scale", "shift", "added_bias", "added_time")
OPTIONS = {"plain": (), "scale": ("scale", "shift"), "all": EVERYTHING}
# How a slice is walked: in one tile, in several by one program, by several programs in two launches.
WALKS = {
    "one tile": {},
    "many tiles": {"RESIDENT_TILE": 0, "TILE": 128},
    "split": {"RESIDENT_TILE": 0, "TILE": 64, "MAX_SLICE": 0, "SPLIT": 128},
    "few splits": {"RESIDENT_TILE": 0, "TILE": 64, "MAX_SLICE": 0, "SPLIT": 64, "MAX_SPLITS": 3},
}


@pytest.fixture(params=WALKS)
def _walk(request, monkeypatch):
    for constant, value in WALKS[request.param].items():
        for module in (group_norm_act, group_norm_act_backward, group_norm_tiles):
            if hasattr(module, constant):
                monkeypatch.setattr(module, constant, value)


def random(shape, device, seed, dtype=torch.float32, layout="nchw", offset=0.0):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + offset
    x = x.to(device, dtype)
    return x.contiguous(memory_format=FORMATS[layout]) if x.ndim == 4 else x


class Case:
    """Inputs of both kernels, all different, and the reference's results for them in float64."""

    def __init__(self, device, shape, second, groups, names=(), dtype=torch.float32, layout="nchw", residual=False):
        channels = shape[1] + second
        self.groups, self.eps = groups, 1e-3
        self.x = random(shape, device, 0, dtype, layout, offset=0.5)
        self.x2 = random((shape[0], second, *shape[2:]), device, 1, dtype, layout, offset=-1.0) if second else None
        self.residual = random(shape, device, 2, dtype, layout) if residual else None
        self.vectors = {"weight": random((channels,), device, 3, offset=1.0), "bias": random((channels,), device, 4)}
        for seed, name in enumerate(names, start=5):
            of = (channels,) if name == "added_bias" else (shape[0], channels)
            self.vectors[name] = random(of, device, seed)
        self.grad_y = random((shape[0], channels, *shape[2:]), device, 10, dtype, layout)
        self.grad_sum = random(shape, device, 11, dtype, layout) if residual else None

    def vector(self, name, double=True):
        value = self.vectors.get(name)
        return value.double() if value is not None and double else value

    def exact(self, act):
        x, x2, residual = (None if v is None else v.double() for v in (self.x, self.x2, self.residual))
        added = [self.vector(name) for name in ("added_bias", "added_time")]
        vectors = [self.vector(name) for name in ("weight", "bias", "scale", "shift")]
        call = GroupNormActCall(x, x2, residual, *added, *vectors, self.groups, self.eps, act)
        return reference_norm.group_norm_act(call)

    def check_forward(self, act=True):
        if self.residual is None:
            y = ops.group_norm_act(
                self.x, groups=self.groups, eps=self.eps, act=act, x2=self.x2, implementation="triton", **self.vectors
            )
            exact = self.exact(act)[0]
        else:
            y, total = ops.add_group_norm_act(
                self.x, self.residual, groups=self.groups, eps=self.eps, act=act, implementation="triton",
                **self.vectors,
            )  # fmt: skip
            assert_near(total, self.exact(act)[1])
            assert total.stride() == y.stride()
            # What the interpreter truncates is what is normalised.
            written = self.without_added()
            written.x = total
            exact = written.exact(act)[0]
        assert y.stride() == torch.zeros(y.shape).contiguous(memory_format=ops.memory_format(self.x)).stride()
        assert_near(y, exact)

    def check_backward(self, act=True):
        """With a residual, x stands for the sum that was written."""
        if self.residual is not None:
            self = self.without_added()
        _, _, mean, rstd = (v.float() for v in self.exact(act))
        parameters = [self.vector(name, False) for name in ("weight", "bias", "scale", "shift")]
        added = [self.vector(name, False) for name in ("added_bias", "added_time")]
        tensors = (self.grad_y, self.grad_sum, self.x, self.x2, *added, *parameters, mean, rstd)
        wide = (None if v is None else v.double() for v in tensors)
        found = group_norm_act_backward.launch_group_norm_act_backward(GroupNormActBackwardCall(*tensors, act, True))
        dh, *exact = reference_norm.group_norm_act_backward(GroupNormActBackwardCall(*wide, act, True))
        dx, dx2, dweight, dbias, dscale, dshift, dadded = found
        first = self.x.shape[1]
        assert_near(dx, dh[:, :first])
        assert dx.stride() == torch.zeros(dx.shape).contiguous(memory_format=ops.memory_format(self.x)).stride()
        if self.x2 is None:
            assert dx2.numel() == 0
        else:
            assert_near(dx2, dh[:, first:])
        if self.vector("scale") is None:
            assert dscale.numel() == dshift.numel() == 0
            dscale = dshift = None
        dh_sum = dh.flatten(2).sum(2) if dh.ndim > 2 else dh
        for ours, theirs in zip((dweight, dbias, dscale, dshift, dadded), (*exact, dh_sum), strict=True):
            if ours is not None:
                assert_near(ours, theirs)

    def without_added(self):
        """The case with x as the written sum."""
        other = copy.copy(self)
        other.residual = None
        other.vectors = {name: value for name, value in self.vectors.items() if not name.startswith("added")}
        return other


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("shape", "second", "groups"), SHAPES + TWO_SOURCES, ids=str)
def test_group_norm_act_matches_the_reference(device, shape, second, groups, layout):
    case = Case(device, shape, second, groups, EVERYTHING, layout=layout)
    case.check_forward()
    case.check_backward()


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize(("shape", "second", "groups"), [SHAPES[2], SHAPES[3], *TWO_SOURCES[:2]], ids=str)
def test_group_norm_act_of_slices_walked_otherwise(device, shape, second, groups, layout):
    case = Case(device, shape, second, groups, EVERYTHING, layout=layout)
    case.check_forward()
    case.check_backward()


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_add_group_norm_act_matches_the_reference(device, dtype, layout):
    case = Case(device, (2, 8, 7, 9), 0, 2, EVERYTHING, DTYPES[dtype], layout, residual=True)
    case.check_forward()
    case.check_backward()


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("shape", "second", "groups"), [SHAPES[2], SHAPES[4], TWO_SOURCES[0]], ids=str)
def test_group_norm_act_in_16_bits(device, dtype, shape, second, groups, layout):
    case = Case(device, shape, second, groups, EVERYTHING, DTYPES[dtype], layout)
    case.check_forward()
    case.check_backward()


def preallocated(call):
    """Where the launcher may write, filled with NaN."""
    x = call.x
    shape = (x.shape[0], call.weight.shape[0], *x.shape[2:])
    y = torch.empty(shape, dtype=x.dtype, device=x.device).contiguous(memory_format=ops.memory_format(x))
    total = None if call.residual is None else torch.empty_like(call.residual)
    mean, rstd = (torch.empty(x.shape[0], call.groups, device=x.device) for _ in range(2))
    size = group_norm_act.partial_shape(call)
    partial = None if size is None else torch.empty(size, device=x.device)
    return group_norm_act.GroupNormActOut(y, total, mean, rstd, partial)


def full_call(device, dtype=torch.float32, layout="nhwc"):
    """With a second source and a residual at once."""
    case = Case(device, (2, 7, 5, 3), 5, 3, EVERYTHING, dtype, layout)
    residual = random((2, 7, 5, 3), device, 12, dtype, layout)
    added = [case.vector(name, False) for name in ("added_bias", "added_time")]
    vectors = [case.vector(name, False) for name in ("weight", "bias", "scale", "shift")]
    return GroupNormActCall(case.x, case.x2, residual, *added, *vectors, case.groups, case.eps, True)


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_group_norm_act_takes_two_sources_and_a_residual(device, dtype, layout):
    call = full_call(device, DTYPES[dtype], layout)
    y, total, mean, rstd = group_norm_act.launch_group_norm_act(call)
    wide = GroupNormActCall._make(v.double() if isinstance(v, torch.Tensor) else v for v in call)
    # The residual goes with the first source.
    wide = wide._replace(residual=torch.nn.functional.pad(wide.residual, (0, 0, 0, 0, 0, 5)))
    h = reference_norm.group_norm_act(wide)[1]
    assert_near(total, h[:, :7])
    # What the interpreter truncates is what is normalised.
    both = torch.cat((total.double(), h[:, 7:]), dim=1)
    plain = wide._replace(x=both, x2=None, residual=None, added_bias=None, added_time=None)
    exact, _, exact_mean, exact_rstd = reference_norm.group_norm_act(plain)
    assert_near(y, exact)
    assert_near(mean, exact_mean)
    assert_near(rstd, exact_rstd)


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("residual", [True, False])
def test_group_norm_act_writes_where_it_is_told(device, residual, layout, monkeypatch):
    call = full_call(device, layout=layout)
    call = call if residual else call._replace(residual=None)
    expected = group_norm_act.launch_group_norm_act(call)
    out = preallocated(call)
    for name in ("empty", "empty_like", "zeros", "full"):
        monkeypatch.setattr(torch, name, lambda *_, **__: pytest.fail("memory was allocated"))
    y, total, mean, rstd = group_norm_act.launch_group_norm_act(call, out)
    assert y is out.y
    assert total is out.total
    assert mean is out.mean
    assert rstd is out.rstd
    assert torch.equal(y, expected[0])
    assert total is None or torch.equal(total, expected[1])
    assert torch.equal(mean, expected[2])
    assert torch.equal(rstd, expected[3])


def test_group_norm_act_refuses_outputs_that_do_not_fit(device):
    call = full_call(device)
    out = preallocated(call)
    for wrong in (
        out._replace(y=out.y.contiguous()),
        out._replace(total=out.total[:1]),
        out._replace(y=out.y.half()),
        out._replace(partial=out.mean),
    ):
        with pytest.raises(ValueError, match="must be"):
            group_norm_act.launch_group_norm_act(call, wrong)
    with pytest.raises(ValueError, match="residual must be"):
        group_norm_act.launch_group_norm_act(call._replace(residual=out.y))


def test_group_norm_act_reads_one_time_for_all_samples(device):
    call = full_call(device)
    shared = call.added_time[:1].expand(2, -1)
    found = group_norm_act.launch_group_norm_act(call._replace(added_time=shared))
    expected = group_norm_act.launch_group_norm_act(call._replace(added_time=shared.clone()))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_writes_the_sum_without_a_residual(device, layout):
    call = full_call(device, layout=layout)
    none = call._replace(residual=torch.zeros_like(call.residual))
    expected = group_norm_act.launch_group_norm_act(none)
    found = group_norm_act.launch_group_norm_act(call._replace(residual=None), preallocated(none))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True))


@pytest.mark.usefixtures("_walk")
def test_group_norm_act_may_write_over_what_it_reads(device):
    case = Case(device, (2, 8, 7, 9), 0, 2, ("added_bias",), layout="nhwc", residual=True)
    vectors = [case.vector(name, False) for name in ("weight", "bias")]
    call = GroupNormActCall(
        case.x, None, case.residual, case.vector("added_bias", False), None, *vectors, None, None, 2, case.eps, True
    )
    expected = group_norm_act.launch_group_norm_act(call)
    out = preallocated(call)._replace(y=call.x, total=call.residual)
    y, total = group_norm_act.launch_group_norm_act(call, out)[:2]
    assert torch.equal(y, expected[0])
    assert torch.equal(total, expected[1])


def test_two_sources_are_tried_with_programs_in_one_and_in_both():
    crossing = set()
    for shape, second, groups in TWO_SOURCES:
        x, x2 = torch.empty(shape), torch.empty((shape[0], second, *shape[2:]))
        slices = group_norm_tiles.cut(x, x2, groups, torch.channels_last, resident=group_norm_act.RESIDENT_TILE)
        crossing.add(slices.first % slices.width != 0)
    assert crossing == {True, False}


@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("names", OPTIONS)
def test_group_norm_act_with_and_without_its_options(device, names, act):
    case = Case(device, (2, 6, 3, 5), 0, 3, OPTIONS[names], layout="nhwc")
    case.check_forward(act)
    case.check_backward(act)


@pytest.mark.usefixtures("_walk")
@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_withstands_an_offset(device, layout):
    """A mean of a thousand deviations in float32, and parts of a slice with far apart means."""
    x = random((1, 4, 9, 8), device, 0, layout=layout) + 1000
    weight, bias = torch.ones(4, device=device), torch.zeros(4, device=device)
    options = {"eps": 1e-6, "act": False}
    y = ops.group_norm_act(x, weight, bias, 2, implementation="triton", **options)
    exact = ops.group_norm_act(x.double(), weight.double(), bias.double(), 2, implementation="reference", **options)
    # One rounding of the mean: 3e-5 of a thousand.
    assert float((y - exact).abs().max()) < 5e-5
    x[:, :, 4:] -= 2000
    y = ops.group_norm_act(x, weight, bias, 2, implementation="triton", **options)
    exact = ops.group_norm_act(x.double(), weight.double(), bias.double(), 2, implementation="reference", **options)
    assert_near(y, exact)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")
def test_group_norm_act_saturates_without_nan(device):
    x = torch.tensor([-1.0, 1.0, -1.0, 1.0], device=device).reshape(1, 2, 2)
    weight, bias = torch.full((2,), 1e4, device=device), torch.zeros(2, device=device)
    y = ops.group_norm_act(x, weight, bias, 1, eps=0.0, implementation="triton")
    assert torch.equal(y.reshape(4).cpu(), torch.tensor([0.0, 1e4, 0.0, 1e4]))
    mean, rstd = torch.zeros(1, 1, device=device), torch.ones(1, 1, device=device)
    nothing = (None,) * 3
    call = GroupNormActBackwardCall(
        torch.ones_like(x), None, x, *nothing, weight, bias, None, None, mean, rstd, True, False
    )
    gradients = group_norm_act_backward.launch_group_norm_act_backward(call)
    assert all(value.isfinite().all() for value in gradients)


def test_group_norm_act_does_not_hide_nan(device):
    x = random((2, 8, 3, 3), device, 0, layout="nhwc")
    x[0, 0, 1, 1] = torch.nan
    weight, bias = torch.ones(8, device=device), torch.zeros(8, device=device)
    y = ops.group_norm_act(x, weight, bias, 2, implementation="triton")
    assert y[0, :4].isnan().all()
    assert y[0, 4:].isfinite().all()
    assert y[1].isfinite().all()


def test_group_norm_act_reads_through_strides(device):
    """Views that are not dense are copied; scale and shift may be halves of one tensor."""
    x = random((2, 8, 5, 8), device, 0)[:, ::2, :, 1:7]
    projection = random((2, 8), device, 1)
    scale, shift = projection.chunk(2, dim=1)
    weight, bias = random((8,), device, 2)[::2], random((8,), device, 3)[::2]
    time = random((4, 2), device, 4).T
    strided = {"weight": weight, "bias": bias, "scale": scale, "shift": shift, "added_time": time}
    dense = {name: value.clone(memory_format=torch.contiguous_format) for name, value in strided.items()}
    found = ops.group_norm_act(x, groups=2, implementation="triton", **strided)
    assert torch.equal(found, ops.group_norm_act(x.contiguous(), groups=2, implementation="triton", **dense))


@pytest.mark.parametrize("layout", FORMATS)
def test_group_norm_act_does_not_depend_on_where_its_inputs_lie(device, layout, monkeypatch):
    """Off a multiple of 16 bytes the compiler would choose other accesses, maybe another order of summation."""
    addresses = []
    for module in (group_norm_act, group_norm_act_backward):

        def recorded(kernel, launches, key, tensors, *rest, launch=module.launch):
            addresses.extend(v.data_ptr() % 16 for v in tensors if v is not None)
            launch(kernel, launches, key, tensors, *rest)

        monkeypatch.setattr(module, "launch", recorded)
    case = Case(device, (2, 8, 5, 3), 4, 3, EVERYTHING, layout=layout)
    case.x, case.x2, case.grad_y = (moved(v) for v in (case.x, case.x2, case.grad_y))
    case.vectors = {name: moved(value) for name, value in case.vectors.items()}
    assert case.x.data_ptr() % 16 == 4
    case.check_forward()
    case.check_backward()
    assert addresses
    assert set(addresses) == {0}


def moved(x):
    """The same values and strides, one element behind a multiple of 16 bytes."""
    memory = torch.empty(x.numel() + 1, dtype=x.dtype, device=x.device)[1:]
    return memory.as_strided(x.shape, x.stride()).copy_(x)


def test_group_norm_act_takes_vectors_of_any_type(device):
    case = Case(device, (2, 8, 3, 3), 0, 2, EVERYTHING, torch.bfloat16, "nhwc")
    for name, dtype in zip(case.vectors, [*DTYPES.values()] * 2, strict=True):
        case.vectors[name] = case.vectors[name].to(dtype)
    case.check_forward()
    case.check_backward()


def test_group_norm_act_does_not_depend_on_the_batch(device):
    case = Case(device, (3, 8, 5, 5), 0, 2, ("scale", "shift"), layout="nhwc")
    whole = ops.group_norm_act(case.x, groups=2, implementation="triton", **case.vectors)
    part = {name: value[1:2] if value.ndim == 2 else value for name, value in case.vectors.items()}
    assert torch.equal(whole[1:2], ops.group_norm_act(case.x[1:2], groups=2, implementation="triton", **part))


@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3)], ids=str)
def test_group_norm_act_of_nothing(device, shape):
    case = Case(device, shape, 0, 2, EVERYTHING, torch.float16)
    y = ops.group_norm_act(case.x, groups=2, implementation="triton", **case.vectors)
    assert (y.shape, y.dtype) == (shape, torch.float16)
    statistics = torch.zeros(shape[0], 2, device=device)
    order = ("added_bias", "added_time", "weight", "bias", "scale", "shift")
    vectors = (case.vectors[name] for name in order)
    call = GroupNormActBackwardCall(case.grad_y, None, case.x, None, *vectors, statistics, statistics, True, True)
    gradients = group_norm_act_backward.launch_group_norm_act_backward(call)
    assert [list(value.shape) for value in gradients] == [list(shape), [0], [4], [4], *[[shape[0], 4]] * 3]
    assert all((value == 0).all() for value in gradients)


def test_group_norm_act_refuses_what_the_kernel_cannot_take(device):
    def run(channels, dtype):
        x, weight = torch.zeros(1, channels, 1, 1, dtype=dtype), torch.zeros(channels, dtype=dtype)
        ops.group_norm_act(x.to(device), weight.to(device), weight.to(device), 1, implementation="triton")

    with pytest.raises(ValueError, match="implementation='reference'"):
        run(4, torch.float64)
    with pytest.raises(ValueError, match="up to 4096 channels per group, got 4097"):
        run(4097, torch.float32)


def test_group_norm_act_says_that_the_interpreter_has_no_autograd(device):
    x, weight, bias = random((1, 4, 3, 3), device, 0), torch.ones(4, device=device), torch.zeros(4, device=device)
    weight.requires_grad_()
    if device.type == "cuda":
        ops.group_norm_act(x, weight, bias, 2, implementation="triton").sum().backward()
        assert weight.grad is not None
        return
    with pytest.raises(RuntimeError, match="no gradient under Triton's interpreter"):
        ops.group_norm_act(x, weight, bias, 2, implementation="triton")
    with torch.no_grad():
        assert ops.group_norm_act(x, weight, bias, 2, implementation="triton").isfinite().all()
