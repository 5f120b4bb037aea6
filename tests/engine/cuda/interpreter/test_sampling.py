"""`fastdiff.sample` by recorded rows: guided models, known pixels, callbacks, and what it says where it cannot."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.engine.cuda.capture import NotCapturable
from fastdiff.sampling import graphs
from fastdiff.sampling.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance
from fastdiff.sampling.known_pixels import Known
from support.host_device import HostDevice
from support.tolerances import FLOAT32_SUM

SHAPE = (2, 3, 4, 6)
DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(1000))
DDPM = fd.samplers.ddpm(DIFFUSION, 4)


class Labelled(nn.Module):
    """A network of one convolution that minds time and label."""

    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.labels = nn.Embedding(4, 3)

    def forward(self, x, t, y):
        shift = self.labels(y)[:, :, None, None] + t.view(-1, 1, 1, 1) / 1000
        return torch.tanh(self.conv(x)) + shift


@pytest.fixture
def device(monkeypatch):
    made = HostDevice()
    monkeypatch.setattr(graphs, "device_for", lambda place: made)
    return made


def both(model, table=DDPM, **options):
    """The result by recorded rows and by the eager loop."""
    options = {"shape": SHAPE, "seed": 3, "progress": False} | options
    return [fd.sample(model, table, runner=runner, **options) for runner in ("graph", "eager")]


def test_guided_models_are_recorded_and_their_weight_is_not(device):
    y = torch.tensor([0, 2])
    model, weak = Labelled().eval(), Labelled(1).eval()
    for guided in (ClassifierFreeGuidance(model, {"y": 3}, 2.0, rescale=0.5), AutoGuidance(model, weak, 1.5)):
        before = len(device.recorders)
        for scale in (1.5, 4.0):
            guided.scale = scale
            ours, eager = both(guided, model_kwargs={"y": y})
            assert (ours - eager).abs().max() < FLOAT32_SUM
        assert len(device.recorders) == before + 1
        assert guided.scale == 4.0
        # Another setting is another graph.
        guided.interval = (0.0, 300.0)
        ours, eager = both(guided, model_kwargs={"y": y})
        assert (ours - eager).abs().max() < FLOAT32_SUM
        assert len(device.recorders) == before + 2


def test_guidance_by_a_classifier_is_recorded(device):
    def gradient(x, t, y):
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            return torch.autograd.grad((x.flatten(1).sum(dim=1) * y).sum(), x)[0] * 1e-3

    guided = ClassifierGuidance(Labelled().eval(), gradient, DIFFUSION, 3.0)
    ours, eager = both(guided, model_kwargs={"y": torch.tensor([1, 2])})
    assert (ours - eager).abs().max() < FLOAT32_SUM


def test_known_pixels_are_put_back_within_the_row(device):
    generator = torch.Generator().manual_seed(0)
    image, mask = torch.rand(SHAPE, generator=generator), torch.rand(SHAPE, generator=generator) > 0.5
    options = {"known": Known(image, mask), "model_kwargs": {"y": torch.tensor([0, 1])}}
    ours, eager = both(Labelled().eval(), **options)
    assert (ours - eager).abs().max() < FLOAT32_SUM
    assert (ours - image)[mask].abs().max() < FLOAT32_SUM


def test_callbacks_see_the_rows_that_they_want(device):
    seen = []
    options = {"callback": lambda step: seen.append((step.row, step.prediction.clone())), "callback_rows": [0, -1]}
    both(Labelled().eval(), model_kwargs={"y": torch.tensor([0, 1])}, **options)
    assert [row for row, _ in seen] == [0, 3, 0, 3]
    for ours, eager in zip(seen[:2], seen[2:], strict=True):
        assert (ours[1] - eager[1]).abs().max() < FLOAT32_SUM


@pytest.mark.parametrize("runner", ["graph", "eager"])
def test_state_that_is_not_finite_names_its_row(device, runner):
    class Bad(nn.Module):
        def forward(self, x, t):
            return x * torch.where(t == DDPM["t"][2], torch.inf, 0.1).to(x.dtype).view(-1, 1, 1, 1)

    table = fd.samplers.ddpm(DIFFUSION, 4, clip=None)
    with pytest.raises(FloatingPointError, match="NaN or infinity after row 2 of 4"):
        fd.sample(Bad(), table, shape=SHAPE, runner=runner, check_finite=True, progress=False)


def test_what_recorded_rows_have_no_part_for_is_said(device):
    class Conditioned(nn.Module):
        self_condition = True

        def forward(self, x, t, x_self_cond=None):
            return x

    cases = [
        ({"dtype": torch.float64}, "state is float32"),
        ({"threshold": fd.DynamicThreshold()}, "no dynamic thresholding"),
        ({"seed": [1, 2]}, "the noise of one seed"),
        ({"model": Conditioned()}, "self-conditioned"),
    ]
    for options, reason in cases:
        model = options.pop("model", lambda x, t: x * 0.1)
        with pytest.raises(ValueError, match=f"recorded rows cannot run this: .*{reason}"):
            fd.sample(model, DDPM, shape=SHAPE, runner="graph", progress=False, **options)


def test_model_that_cannot_be_recorded_is_named(device, monkeypatch):
    def refuse(*arguments, **options):
        raise NotCapturable("inner (Linear) draws")

    monkeypatch.setattr(graphs, "run_table", refuse)
    with pytest.raises(ValueError, match=r"inner \(Linear\) draws; use 'auto' or 'eager'"):
        fd.sample(lambda x, t: x, DDPM, shape=SHAPE, runner="graph", progress=False)
