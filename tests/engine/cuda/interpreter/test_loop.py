"""Recorded rows are the eager loop: every kind of table, batches in chunks, stops, labels, memory used again."""

import gc
import threading
import weakref

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.engine.cuda import loop
from fastdiff.engine.cuda.loop import AfterStep, run_table
from fastdiff.engine.cuda.network import CudaNetwork
from fastdiff.ops.table_state import TableState
from fastdiff.process.checks import NotFinite
from fastdiff.sampling.runner import initial_noise
from support import fake_cuda
from support.engine_networks import SMALL
from support.host_device import FakeGpu, HostDevice
from support.networks import redrawn
from support.tolerances import FLOAT32_DEEP, FLOAT32_SUM

SHAPE = (3, 4, 6)
LINEAR = fd.Diffusion(fd.NoiseSchedule.linear(1000))
LEARNED = fd.Diffusion(fd.NoiseSchedule.cosine(1000), variance="learned_range")
TABLES = {
    "ddim": fd.samplers.ddim(LINEAR, 4),
    "ddpm": fd.samplers.ddpm(LINEAR, 4),
    "ddpm with a learned variance": fd.samplers.ddpm(LEARNED, 4),
    "history": fd.samplers.dpmpp_2m(LINEAR, 4),
    "history and a base": fd.samplers.unipc(LINEAR, 5),
    "rows without an evaluation": fd.samplers.repaint(LINEAR, 4, jump_length=2, jump_repeats=2),
}


class Small(nn.Module):
    """A network of one convolution, which minds the time and, where it has labels, them."""

    def __init__(self, learned=False, labels=False):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(SHAPE[0], SHAPE[0] * (2 if learned else 1), 3, padding=1)
        self.labels = nn.Embedding(5, 1) if labels else None
        self.shift = 0.0

    def forward(self, x, t, y=None):
        out = torch.tanh(self.conv(x)) * (1 + t.view(-1, 1, 1, 1) / 1000) + self.shift
        return out if self.labels is None else out + self.labels(y).view(-1, 1, 1, 1)


def eager(model, table, batch, seed=7, **kwargs):
    shape = (batch, *SHAPE)
    return fd.sample(model, table, shape=shape, seed=seed, runner="eager", progress=False, model_kwargs=kwargs)


def recorded(model, table, batch, device, seed=7, rows=None, told=None, stops=(), on_stop=None, **options):
    """The state after the rows, by a device that stands for a GPU."""
    kwargs = options.pop("model_kwargs", {})
    x = options.pop("x", None)
    ids = torch.arange(batch)
    x = initial_noise((batch, *SHAPE), ids, seed, table.init_scale) if x is None else x
    with torch.no_grad():
        run_table(
            model, TableState(table), x, range(len(table)) if rows is None else rows, device=device, ids=ids, seed=seed,
            model_kwargs=kwargs, input_dtype=torch.float32, advance=(told if told is not None else []).append,
            stops=frozenset(stops), on_stop=on_stop, **options,
        )  # fmt: skip
    return x


@pytest.fixture
def gpu():
    """Makes devices over a CUDA runtime without a GPU, in which nothing is left behind."""
    runtime, made = fake_cuda.runtime(), []
    runtime.reset()

    def make(mode="while"):
        made.append(FakeGpu(runtime, mode))
        return made[-1]

    yield make
    for device in made:
        device.close()
    violation, live, errors = runtime.violation(), runtime.live(), list(runtime.errors)
    runtime.reset()
    assert (violation, live, errors) == ("", {}, [])


@pytest.mark.parametrize("name", TABLES)
def test_recorded_rows_are_the_eager_loop(name):
    table = TABLES[name]
    model = Small(learned=table.learned_variance).eval()
    told = []
    x = recorded(model, table, 3, HostDevice(), told=told)
    assert (x - eager(model, table, 3)).abs().max() < FLOAT32_SUM
    assert sum(told) == len(table)


@pytest.mark.parametrize("mode", ["while", "replay"])
@pytest.mark.parametrize("name", ["ddpm", "history and a base", "rows without an evaluation"])
def test_recorded_rows_are_one_launch_of_a_graph(gpu, name, mode):
    table, model, told, device = TABLES[name], Small().eval(), [], gpu(mode)
    x = recorded(model, table, 3, device, told=told, check_finite=True)
    assert (x - eager(model, table, 3)).abs().max() < FLOAT32_SUM
    assert sum(told) == len(table)
    if mode == "while":
        assert device.runtime.calls("cudaGraphLaunch") == 1


def test_published_digits_network_runs_through_launches_and_the_loop_graph(gpu):
    """The whole of it: plan, launches, csrc/cuda; against the C++ engine."""
    torch.manual_seed(0)
    net = redrawn(fd.UNet(fd.UNetConfig.preset("digits")).eval(), 0.05)
    table, ids, device = fd.samplers.ddim(LINEAR, 3), torch.arange(1), gpu()
    x = initial_noise((1, 1, 8, 8), ids, 7, table.init_scale)
    expected = fd.sample(net, table, shape=(1, 1, 8, 8), seed=7, runner="native", progress=False)
    with torch.no_grad():
        run_table(
            CudaNetwork(net, precision="strict"), TableState(table), x, range(3), device=device,
            ids=ids, seed=7, model_kwargs={}, input_dtype=torch.float32, advance=lambda count: None,
            stops=frozenset(), on_stop=None,
        )  # fmt: skip
    assert (x - expected).abs().max() < FLOAT32_DEEP
    assert device.runtime.calls("cudaGraphLaunch") == 1


def test_state_that_is_not_finite_ends_the_launch(gpu):
    class Bad(Small):
        def forward(self, x, t):
            return super().forward(x, t) * torch.where(t == TABLES["ddim"]["t"][1], torch.nan, 1.0).view(-1, 1, 1, 1)

    with pytest.raises(NotFinite, match="after row 1 of 4"):
        recorded(Bad().eval(), TABLES["ddim"], 2, gpu(), check_finite=True)


def test_batches_run_in_chunks_of_equal_size(monkeypatch):
    monkeypatch.setattr(loop, "MAX_CHUNK", 3)
    table, model, device = TABLES["history and a base"], Small().eval(), HostDevice()
    # Seven samples: chunks of three, the last of which is not full.
    told = []
    x = recorded(model, table, 7, device, told=told)
    assert (x - eager(model, table, 7)).abs().max() < FLOAT32_SUM
    assert sum(told) == len(table)
    assert len(device.recorders) == 1


def test_stops_see_the_state_and_the_prediction_and_may_change_it(monkeypatch):
    monkeypatch.setattr(loop, "MAX_CHUNK", 2)
    table, model = TABLES["history"], Small().eval()
    seen, expected = [], []

    def callback(step):
        expected.append((step.row, step.x.clone(), step.prediction.clone()))
        step.x.mul_(0.5)

    def on_stop(row, prediction):
        seen.append((row, x.clone(), prediction.clone()))
        x.mul_(0.5)

    fd.sample(
        model, table, shape=(3, *SHAPE), seed=7, runner="eager", progress=False, callback=callback, callback_rows=[1, 3]
    )
    x = initial_noise((3, *SHAPE), torch.arange(3), 7, table.init_scale)
    recorded(model, table, 3, HostDevice(), x=x, stops=(1, 3), on_stop=on_stop)
    assert [row for row, *_ in seen] == [row for row, *_ in expected] == [1, 3]
    for (_, *ours), (_, *theirs) in zip(seen, expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() < FLOAT32_SUM


def test_what_differs_from_run_to_run_is_not_recorded_again():
    table, model, device = TABLES["ddpm"], Small(labels=True).eval(), HostDevice()
    longer = fd.samplers.ddpm(LINEAR, 6)
    for seed, table_, y in ((1, table, [0, 1]), (2, table, [3, 4]), (2, longer, [1, 1])):
        labels = torch.tensor(y)
        x = recorded(model, table_, 2, device, seed=seed, model_kwargs={"y": labels})
        assert (x - eager(model, table_, 2, seed=seed, y=labels)).abs().max() < FLOAT32_SUM
    assert len(device.recorders) == 1
    # Weights that are written in place are seen; what a module is set to is recorded anew.
    with torch.no_grad():
        model.conv.weight.mul_(0.5)
    labels = torch.tensor([0, 1])
    expected = eager(model, table, 2, y=labels)
    assert (recorded(model, table, 2, device, model_kwargs={"y": labels}) - expected).abs().max() < FLOAT32_SUM
    assert len(device.recorders) == 1
    model.shift = 0.5
    expected = eager(model, table, 2, y=labels)
    assert (recorded(model, table, 2, device, model_kwargs={"y": labels}) - expected).abs().max() < FLOAT32_SUM
    assert len(device.recorders) == 2


def test_longer_table_makes_the_room_grow(monkeypatch):
    monkeypatch.setattr(loop, "MIN_ROWS", 4)
    model, device = Small().eval(), HostDevice()
    for steps, recorders in ((3, 1), (4, 1), (9, 2), (12, 2)):
        table = fd.samplers.ddim(LINEAR, steps)
        assert (recorded(model, table, 2, device) - eager(model, table, 2)).abs().max() < FLOAT32_SUM
        assert len(device.recorders) == recorders


def test_state_that_is_not_finite_stops_the_loop_at_its_row():
    table = TABLES["ddim"]

    class Bad(Small):
        def forward(self, x, t):
            return torch.where(t.view(-1, 1, 1, 1) == table["t"][2], torch.nan, super().forward(x, t))

    with pytest.raises(NotFinite, match=f"after row 2 of {len(table)}"):
        recorded(Bad().eval(), table, 2, HostDevice(), check_finite=True)
    assert torch.isfinite(recorded(Small().eval(), table, 2, HostDevice(), check_finite=True)).all()


def test_after_step_is_part_of_the_row():
    table, model, device = TABLES["ddim"], Small().eval(), HostDevice()
    scale = torch.linspace(0.5, 1, len(table))
    shift = torch.arange(2.0).view(2, 1, 1, 1)

    def launch(statics):
        statics.x.mul_(statics.extra["scale"][statics.row]).add_(statics.extra["shift"])

    x = initial_noise((2, *SHAPE), torch.arange(2), 7, table.init_scale)
    state = TableState(table)
    with torch.no_grad():
        for row in range(len(table)):
            state.step(row, x, model(*state.network_input(row, x)), seed=7, out=x)
            x = x * scale[row] + shift
    after = AfterStep(launch, {"shift": shift}, {"scale": scale}, key="scale and shift")
    assert (recorded(model, table, 2, device, after_step=after) - x).abs().max() < FLOAT32_SUM


def test_what_is_called_between_rows_may_sample_with_the_same_model():
    model, device = Small().eval(), HostDevice()
    outer, inner = TABLES["history"], TABLES["ddim"]
    ids = torch.arange(2)
    x = initial_noise((2, *SHAPE), ids, 7, outer.init_scale)
    expected = eager(model, outer, 2)

    def on_stop(row, prediction):
        # Another table, other noise, the same recorded row but for its history.
        assert (recorded(model, inner, 2, device, seed=1) - eager(model, inner, 2, seed=1)).abs().max() < FLOAT32_SUM
        again = fd.samplers.dpmpp_2m(LINEAR, 3)
        found = recorded(model, again, 2, device, seed=2, stops=(2,), on_stop=lambda row, prediction: None)
        assert (found - eager(model, again, 2, seed=2)).abs().max() < FLOAT32_SUM

    recorded(model, outer, 2, device, x=x, stops=(0, 2), on_stop=on_stop)
    assert (x - expected).abs().max() < FLOAT32_SUM
    assert len(device.recorders) == 2


def test_threads_share_a_model():
    model, device, table = Small().eval(), HostDevice(), TABLES["ddim"]
    found = {}

    def run(seed):
        found[seed] = recorded(model, table, 2, device, seed=seed)

    threads = [threading.Thread(target=run, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(device.recorders) == 1
    for seed, x in found.items():
        assert (x - eager(model, table, 2, seed=seed)).abs().max() < FLOAT32_SUM


def test_memory_that_runs_out_makes_chunks_smaller(monkeypatch):
    table, model, device = TABLES["ddim"], Small().eval(), HostDevice()
    make = HostDevice.recorder

    def recorder(self):
        made = make(self)
        record = made.record

        def limited(run, model=None):
            if len(self.recorders) < 3:
                raise torch.OutOfMemoryError("out of memory")
            return record(run, model)

        made.record = limited
        return made

    monkeypatch.setattr(HostDevice, "recorder", recorder)
    with pytest.warns(RuntimeWarning, match="samples run [0-9]+ at a time"):
        x = recorded(model, table, 5, device)
    assert (x - eager(model, table, 5)).abs().max() < FLOAT32_SUM


def test_output_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"output must have shape \[2, 6, 4, 6\], got \[2, 3, 4, 6\]"):
        recorded(Small().eval(), TABLES["ddpm with a learned variance"], 2, HostDevice())


def test_compiled_network_is_run_by_its_plan_and_goes_with_it():
    torch.manual_seed(0)
    config = SMALL | {"image_size": 8, "attention_resolutions": (4,), "in_channels": 3}
    net = redrawn(fd.UNet(fd.UNetConfig(**config)).eval(), 0.05)
    table, ids, device = fd.samplers.ddim(LINEAR, 2), torch.arange(2), HostDevice()
    compiled = CudaNetwork(net, precision="strict")
    x = initial_noise((2, 3, 8, 8), ids, 7, table.init_scale)
    expected = fd.sample(net, table, shape=(2, 3, 8, 8), seed=7, runner="eager", progress=False)
    with torch.no_grad():
        run_table(
            compiled, TableState(table), x, range(2), device=device, ids=ids, seed=7, model_kwargs={},
            input_dtype=torch.float32, advance=lambda count: None, stops=frozenset(), on_stop=None,
        )  # fmt: skip
    assert (x - expected).abs().max() < FLOAT32_DEEP
    # Nothing keeps the network and its memory but who holds it.
    gone = weakref.ref(net)
    del compiled, net
    gc.collect()
    assert gone() is None
