"""The drop-ins' short way through a step: it changes no number, no output and nobody else's memory."""

import copy
import pickle

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")

from fastdiff import ops  # noqa: E402
from fastdiff.compat import diffusers as ours  # noqa: E402
from fastdiff.compat.diffusers._run import output_of  # noqa: E402
from fastdiff.ops import table_state  # noqa: E402
from support.scheduler_runs import SAME_IMAGES  # noqa: E402

NAMES = [
    name for name in ours.__all__ if name.endswith("Scheduler") and name not in ("FusedScheduler", "RePaintScheduler")
]
pytestmark = [
    pytest.mark.skipif(not ops.has_extension(), reason="the C++ extension is not built"),
    pytest.mark.filterwarnings("ignore:__array:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning"),
]


def network(x, t):
    return 0.6 * x + 0.3 * torch.sin(2 * x)


def start(name, shape=(2, 3, 4, 4), steps=8):
    scheduler = getattr(ours, name)()
    scheduler.set_timesteps(steps)
    scheduler.is_scale_input_called = True
    scheduler.seed = 5
    return scheduler, torch.randn(shape, generator=torch.Generator().manual_seed(0))


def outputs_of(name, shape=(2, 3, 4, 4), *, laid_out=lambda x: x):
    scheduler, x = start(name, shape)
    x, seen = laid_out(x), []
    for t in scheduler.timesteps:
        seen.append(scheduler.step(laid_out(network(x, t)), t, x))
        x = seen[-1].prev_sample
    return seen


@pytest.fixture
def dense_calls(monkeypatch):
    """Rows that went past the dispatcher."""
    calls = []
    real = table_state._step_dense

    def counting(*numbers):
        calls.append(numbers)
        return real(*numbers)

    monkeypatch.setattr(table_state, "_step_dense", counting)
    return calls


@pytest.mark.parametrize("shape", [(2, 3, 4, 4), (1, 1, 7, 5), (3, 3, 33, 31), (5, 3), (0, 3, 4, 4)])
@pytest.mark.parametrize("name", NAMES)
def test_run_past_the_dispatcher_equals_the_op_to_the_bit(name, shape, monkeypatch, dense_calls):
    short = outputs_of(name, shape)
    assert dense_calls
    monkeypatch.setattr(table_state, "_is_dense", lambda x, m: False)
    through_the_op = outputs_of(name, shape)
    for a, b in zip(short, through_the_op, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a.keys())  # noqa: SIM118


@pytest.mark.parametrize("name", NAMES)
def test_run_outputs_keep_their_values(name):
    """Nothing that a step returns or was given is memory of a later step, whoever writes to it."""
    untouched = [{key: value.clone() for key, value in seen.items()} for seen in outputs_of(name)]
    scheduler, x = start(name)
    held = []
    for t, expected in zip(scheduler.timesteps, untouched, strict=True):
        m = network(x, t)
        seen = scheduler.step(m, t, x)
        held.append(seen)
        # A caller that works in place: what it gave and what it got are overwritten after each step.
        following = seen.prev_sample.clone()
        x.fill_(torch.nan)
        m.fill_(torch.nan)
        assert all(torch.equal(seen[key], expected[key]) for key in expected)
        for value in seen.values():
            value.fill_(7.0)
        x = following
    assert all(bool((value == 7.0).all()) for seen in held for value in seen.values())
    # The last of a consistency model's samples is its predicted image itself, as theirs.
    values = {id(value): value for seen in held for value in seen.values()}
    assert len({value.data_ptr() for value in values.values()}) == len(values)


@pytest.mark.parametrize(
    "laid_out",
    [
        pytest.param(lambda x: x.double(), id="float64"),
        pytest.param(lambda x: x.bfloat16(), id="bfloat16"),
        pytest.param(lambda x: x.contiguous(memory_format=torch.channels_last), id="channels_last"),
        pytest.param(lambda x: x.transpose(2, 3).contiguous().transpose(2, 3), id="strided"),
        pytest.param(lambda x: torch._neg_view(-x), id="negative view"),
        pytest.param(lambda x: torch.nn.Parameter(x, requires_grad=False), id="subclass"),
    ],
)
def test_run_leaves_other_tensors_to_the_op(laid_out, dense_calls):
    expected = outputs_of("DDIMScheduler")
    dense_calls.clear()
    scheduler, x = start("DDIMScheduler")
    t = scheduler.timesteps[0]
    seen = scheduler.step(laid_out(network(x, t)), t, laid_out(x))
    assert not dense_calls
    tolerance = 0.05 if seen.prev_sample.dtype == torch.bfloat16 else 1e-5
    assert torch.allclose(seen.prev_sample.float(), expected[0].prev_sample, atol=tolerance)


class Watching(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


def test_run_is_seen_by_whoever_watches_the_ops(dense_calls):
    scheduler, x = start("DDIMScheduler")
    with Watching() as watching:
        scheduler.step(x, scheduler.timesteps[0], x)
    assert "fastdiff.step.default" in watching.seen
    assert not dense_calls


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_run_past_the_dispatcher_in_every_grad_mode(mode, dense_calls):
    expected = outputs_of("HeunDiscreteScheduler")
    dense_calls.clear()
    with mode():
        seen = outputs_of("HeunDiscreteScheduler")
    assert len(dense_calls) == len(seen)
    assert torch.equal(seen[-1].prev_sample, expected[-1].prev_sample)
    assert not seen[-1].prev_sample.requires_grad


# Theirs begins IPNDM where alpha is 0: it drops what the network says, and its gradients there are roundings.
GRADIENT_RUNS = [(name, {}) for name in NAMES if name != "IPNDMScheduler"] + [
    ("PNDMScheduler", {"skip_prk_steps": True})
]


@pytest.mark.parametrize(("name", "options"), GRADIENT_RUNS, ids=str)
@pytest.mark.parametrize("watched", [(3,), (0, 4), range(100)], ids=["one step", "two steps", "every step"])
def test_run_has_diffusers_states_and_gradients(name, options, watched):
    """A step with a gradient is a step of the run like the others: it reads what they kept, and they what it did."""
    seen = []
    for kind in (diffusers, ours):
        scheduler = getattr(kind, name)(**options)
        scheduler.set_timesteps(10)
        x = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        is_random = any(part in name for part in ("Ancestral", "DDPM", "LCM", "TCD"))
        draws = {"generator": torch.Generator().manual_seed(1)} if is_random else {}
        states, leaves = [], []
        for i, t in enumerate(scheduler.timesteps):
            if i in watched:
                x = x.detach().requires_grad_() if len(watched) < 3 or i == 0 else x
                leaves.append(x)
            # diffusers' schedulers of flows have neither.
            given = scheduler.scale_model_input(x, t) if hasattr(scheduler, "scale_model_input") else x
            x = scheduler.step(network(given, t), t, x, **draws).prev_sample
            states.append(x)
            if len(watched) < 3:
                if i in watched:
                    states += torch.autograd.grad(x.square().sum(), leaves[-1], retain_graph=True)
                x = x.detach()
        if len(watched) > 3:
            states += torch.autograd.grad(x.square().sum(), leaves[0])
        seen.append([state.detach() for state in states])
    for theirs, mine in zip(*seen, strict=True):
        scale = float(theirs.abs().max().clamp(min=1))
        assert float((theirs - mine).abs().max()) / scale < SAME_IMAGES


def test_run_writes_into_nothing_that_a_gradient_needs():
    """Rows without gradients follow: backward of the one before is as if they had not."""
    found = []
    for more in (0, 3):
        scheduler, x = start("UniPCMultistepScheduler")
        times = iter(scheduler.timesteps)
        x = scheduler.step(network(x, None), next(times), x).prev_sample
        leaf = x.clone().requires_grad_()
        t = next(times)
        out = scheduler.step(network(leaf, t), t, leaf).prev_sample
        x = out.detach()
        with torch.no_grad():
            for _ in range(more):
                t = next(times)
                x = scheduler.step(network(x, t), t, x).prev_sample
        found += torch.autograd.grad(out.square().sum(), leaf)
    assert torch.equal(*found)


def test_run_copied_scheduler_has_state_of_its_own():
    scheduler, x = start("DPMSolverMultistepScheduler")
    x = scheduler.step(network(x, None), scheduler.timesteps[0], x).prev_sample
    other = copy.deepcopy(scheduler)
    expected, t = network(x, None), scheduler.timesteps[1]
    first = scheduler.step(expected, t, x).prev_sample
    scheduler.step(expected + 1, scheduler.timesteps[2], x)
    del scheduler
    assert torch.equal(other.step(expected, t, x).prev_sample, first)


WITH_A_PAST = ["DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler",
               "HeunDiscreteScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "UniPCMultistepScheduler"]  # fmt: skip


@pytest.mark.parametrize("name", WITH_A_PAST)
def test_run_of_one_state_goes_on_as_a_batch(name):
    """As in diffusers, whose kept states broadcast: variants of one image from some step on."""
    seen = []
    for kind in (diffusers, ours):
        scheduler = getattr(kind, name)()
        scheduler.set_timesteps(10)
        x = torch.randn(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
        x = x * getattr(scheduler, "init_noise_sigma", 1.0)
        states = []
        for i, t in enumerate(scheduler.timesteps):
            m = network(scheduler.scale_model_input(x, t), t)
            # Where a step of Heun and one of Runge-Kutta begin.
            if i == 4:
                m = torch.cat([m, 1.1 * m, 0.9 * m])
                x = x.expand(3, 3, 4, 4)
            x = scheduler.step(m, t, x).prev_sample
            states.append(x)
        seen.append(states)
    for theirs, mine in zip(*seen, strict=True):
        assert theirs.shape == mine.shape
        assert float((theirs - mine).abs().max() / theirs.abs().max().clamp(min=1)) < SAME_IMAGES


@pytest.mark.parametrize("name", WITH_A_PAST)
def test_run_refuses_another_shape_where_the_past_is_read(name):
    scheduler, x = start(name)
    # Within a step of those that have several evaluations, or after the first of the others.
    for t in scheduler.timesteps[:1]:
        x = scheduler.step(network(x, t), t, x).prev_sample
    t = scheduler.timesteps[1]
    for other in (x[:1], x[..., :2]):
        with pytest.raises(ValueError, match=r"keep its shape .*call set_timesteps"):
            scheduler.step(network(other, t), t, other)
    # The run is as it was, and another may begin.
    assert scheduler.step(network(x, t), t, x).prev_sample.isfinite().all()
    scheduler.set_timesteps(8)
    assert scheduler.step(x[:1], scheduler.timesteps[0], x[:1]).prev_sample.isfinite().all()


def test_run_refuses_a_row_that_draws_noise():
    x = torch.randn(4)
    rows = torch.zeros(1, 32)
    rows[0, 12] = 1.0
    with pytest.raises(RuntimeError, match="draws noise"):
        table_state._step_dense(x.data_ptr(), x.data_ptr(), x.data_ptr(), 0, 0, 0, 0, 4, rows.data_ptr(), 0)


@pytest.mark.parametrize("name", NAMES)
def test_output_is_what_the_constructor_makes(name):
    seen = outputs_of(name)[0]
    kind, fields = type(seen), dict(seen.items())
    theirs = kind(**fields)
    assert kind.__module__.startswith("diffusers.")
    assert vars(seen) == vars(theirs)
    assert list(seen.items()) == list(theirs.items())
    assert seen.to_tuple() == theirs.to_tuple() == tuple(fields.values())
    assert seen[0] is seen["prev_sample"] is seen.prev_sample
    assert repr(seen) == repr(theirs)
    again = pickle.loads(pickle.dumps(seen))
    assert type(again) is kind
    assert torch.equal(again.prev_sample, seen.prev_sample)
    copied = copy.deepcopy(seen)
    assert copied.keys() == seen.keys()
    leaves, spec = torch.utils._pytree.tree_flatten(seen)
    assert leaves == list(fields.values())
    assert type(torch.utils._pytree.tree_unflatten(leaves, spec)) is kind
    seen.prev_sample = fields["prev_sample"] + 1
    assert torch.equal(seen["prev_sample"], fields["prev_sample"] + 1)


def test_output_of_an_unknown_kind_is_constructed():
    class Odd(dict):
        def __init__(self, **values):
            super().__init__(values)
            self.extra = True

    assert output_of(Odd, True, prev_sample=torch.zeros(1)).extra


@pytest.mark.parametrize("name", NAMES)
def test_set_timesteps_again_keeps_levels_and_tables(name):
    expected = outputs_of(name)[-1].prev_sample
    scheduler, _ = start(name)
    for steps in (8, 8, 5, 8):
        scheduler.set_timesteps(steps)
    scheduler.is_scale_input_called = True
    x = start(name)[1]
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t), t, x).prev_sample
    assert torch.equal(x, expected)


def test_set_timesteps_again_does_not_build_again(monkeypatch):
    scheduler, x = start("EulerDiscreteScheduler")
    scheduler.step(x, scheduler.timesteps[0], x)
    monkeypatch.setattr(scheduler, "_build", None)
    scheduler.set_timesteps(8)
    scheduler.step(x, scheduler.timesteps[0], x)
    assert scheduler._sigmas().dtype == torch.float32
    scheduler.set_timesteps(9)
    with pytest.raises(TypeError):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize("name", NAMES)
def test_run_over_the_training_timesteps_is_the_same_of_a_file(name, tmp_path):
    """Levels are float64 before `set_timesteps` too, also where the configuration was written to and read."""
    scheduler = getattr(ours, name)(num_train_timesteps=300)
    scheduler.save_pretrained(tmp_path)
    others = [getattr(ours, name).from_pretrained(tmp_path), getattr(ours, name).from_config(scheduler.config)]
    if name in ("HeunDiscreteScheduler", "LMSDiscreteScheduler"):
        assert scheduler._levels is not None
    for other in others:
        assert (other._levels is None) == (scheduler._levels is None)
        if scheduler._levels is not None:
            assert torch.equal(scheduler._sigmas(), other._sigmas())
        other.register_to_config(_noted="elsewhere")
        other._refresh()
        assert (other._levels is None) == (scheduler._levels is None)
