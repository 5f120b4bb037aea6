"""Guidance wrappers against their formulas and, for a Gaussian mixture's components, exact scores."""

import pytest
import torch
from torch import nn

import fastdiff as fd
from fastdiff.sampling.guidance import AutoGuidance, ClassifierFreeGuidance, ClassifierGuidance
from support.tolerances import FLOAT32_SUM

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(100, 1e-3, 0.2))


def labelled(x, t, y, extra=1.0):
    return extra * (x * 0.1 + y.reshape(-1, 1, 1, 1).to(x.dtype) * torch.ones_like(x)) + t.reshape(-1, 1, 1, 1) * 0.01


def inputs(batch=3):
    x = torch.randn(batch, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return x, torch.tensor([10, 50, 90])[:batch], torch.tensor([1, 2, 3])[:batch]


def test_classifier_free_guidance_extrapolates():
    x, t, y = inputs()
    for null in (0, torch.tensor([0]), torch.zeros(3, dtype=torch.int64)):
        guided = ClassifierFreeGuidance(labelled, {"y": null}, 3.0)(x, t, y=y, extra=2.0)
        c, u = labelled(x, t, y, 2.0), labelled(x, t, 0 * y, 2.0)
        torch.testing.assert_close(guided, u + 3 * (c - u))
    torch.testing.assert_close(ClassifierFreeGuidance(labelled, {"y": 0}, 1.0)(x, t, y=y), labelled(x, t, y))
    torch.testing.assert_close(ClassifierFreeGuidance(labelled, {"y": 0}, 0.0)(x, t, y=y), labelled(x, t, 0 * y))


def test_classifier_free_guidance_in_an_interval():
    x, t, y = inputs()
    guided = ClassifierFreeGuidance(labelled, {"y": 0}, 3.0, interval=(20, 60))(x, t, y=y)
    whole = ClassifierFreeGuidance(labelled, {"y": 0}, 3.0)(x, t, y=y)
    torch.testing.assert_close(guided[1], whole[1])
    torch.testing.assert_close(guided[[0, 2]], labelled(x, t, y)[[0, 2]])


def test_classifier_free_guidance_rescales_to_the_conditional_deviation():
    x, t, y = inputs()

    def model(x, t, y):
        return x * y.reshape(-1, 1, 1, 1)

    guided = ClassifierFreeGuidance(model, {"y": 0}, 5.0, rescale=1.0)(x, t, y=y)
    torch.testing.assert_close(guided.flatten(1).std(dim=1), model(x, t, y).flatten(1).std(dim=1))


def test_guidance_leaves_the_learned_variance_alone():
    x, t, y = inputs()

    def model(x, t, y):
        return torch.cat([labelled(x, t, y), y.reshape(-1, 1, 1, 1).expand_as(x).to(x.dtype)], dim=1)

    guided = ClassifierFreeGuidance(model, {"y": 0}, 4.0)(x, t, y=y)
    torch.testing.assert_close(guided[:, 2:], model(x, t, y)[:, 2:])
    auto = AutoGuidance(model, lambda x, t, y: model(x, t, 0 * y), 4.0)(x, t, y=y)
    torch.testing.assert_close(auto, guided)
    by_classifier = ClassifierGuidance(model, lambda x, t, y: torch.ones_like(x), DIFFUSION)(x, t, y=y)
    torch.testing.assert_close(by_classifier[:, 2:], model(x, t, y)[:, 2:])


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "score"])
def test_classifier_guidance_gives_the_exact_posterior(prediction):
    """Prior N(0, 1), classifier exp(-(x0 - 2)^2 / 2): the guided network is that of the product, N(1, 1/2)."""
    diffusion = fd.Diffusion(DIFFUSION.schedule, prediction)
    abar = torch.tensor(diffusion.schedule.alphas_cumprod)

    def network(x, t, mean, variance):
        a = abar[t].reshape(-1, 1)
        score = -(x - torch.sqrt(a) * mean) / (a * variance + 1 - a)
        eps = -torch.sqrt(1 - a) * score
        x0 = (x - torch.sqrt(1 - a) * eps) / torch.sqrt(a)
        return {"eps": eps, "x0": x0, "v": torch.sqrt(a) * eps - torch.sqrt(1 - a) * x0, "score": score}[prediction]

    def gradient(x, t):
        a = abar[t].reshape(-1, 1)
        # x0 | x_t ~ N(sqrt(a) x, 1 - a), so y = 2 given x_t ~ N(sqrt(a) x, 2 - a).
        return torch.sqrt(a) * (2 - torch.sqrt(a) * x) / (2 - a)

    x = torch.linspace(-3, 3, 11, dtype=torch.float64).reshape(-1, 1)
    for time in (0, 30, 99):
        t = torch.full((11,), time)
        guided = ClassifierGuidance(lambda x, t: network(x, t, 0.0, 1.0), gradient, diffusion)(x, t)
        torch.testing.assert_close(guided, network(x, t, 1.0, 0.5), rtol=FLOAT32_SUM, atol=FLOAT32_SUM)


def test_guided_models_are_sampled_and_keep_eval_mode():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.dropout, self.weight = nn.Dropout(0.5), nn.Parameter(torch.ones(1))

        def forward(self, x, t, y):
            return self.dropout(x * self.weight) + y.reshape(-1, 1, 1, 1)

    guided = ClassifierFreeGuidance(Net(), {"y": 0}, 2.0).train()
    table = fd.samplers.ddim(DIFFUSION, 4)
    options = {"shape": (2, 1, 4, 4), "model_kwargs": {"y": torch.tensor([0.1, 0.2])}, "progress": False}
    assert torch.equal(fd.sample(guided, table, **options), fd.sample(guided, table, **options))
    assert guided.training


def test_guidance_refuses():
    with pytest.raises(ValueError, match="rescale"):
        ClassifierFreeGuidance(labelled, {"y": 0}, 1.0, rescale=2)
    with pytest.raises(ValueError, match="interval"):
        AutoGuidance(labelled, labelled, 1.0, interval=(5, 1))
    with pytest.raises(ValueError, match="unconditional must name"):
        ClassifierFreeGuidance(labelled, {}, 1.0)
    x, t, _ = inputs()
    with pytest.raises(ValueError, match="without"):
        ClassifierFreeGuidance(labelled, {"y": 0}, 1.0)(x, t)
    with pytest.raises(ValueError, match="gradient of shape"):
        ClassifierGuidance(lambda x, t: x, lambda x, t: x[:, :1], DIFFUSION)(x, t)
    with pytest.raises(ValueError, match="some signal"):
        ClassifierGuidance(labelled, labelled, fd.Diffusion(fd.NoiseSchedule.jsd(10), "v"))


def test_autoguidance_gives_each_network_its_own_input():
    def halved(x, t):
        return x.mul_(0.5)

    x, t = torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    before = x.clone()
    guided = AutoGuidance(halved, lambda x, t: x * 0.5, 3.0)(x, t)
    assert torch.equal(x, before)
    assert torch.equal(guided, 0.5 * before)


@pytest.mark.parametrize("writes", [False, True])
def test_guidance_copies_its_input_for_models_that_write_to_it_alone(writes):
    seen = []

    def model(x, t):
        seen.append(x.data_ptr())
        return x.mul_(0.5) if writes else 0.5 * x

    x, t = torch.randn(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64)
    expected = 0.5 * x - float(DIFFUSION.signal_noise()[1][0])
    guided = ClassifierGuidance(model, lambda x, t: torch.ones_like(x), DIFFUSION)
    for _ in range(3):
        torch.testing.assert_close(guided(x, t), expected)
    assert [place == x.data_ptr() for place in seen] == [False, not writes, not writes]


class SelfConditioned(nn.Module):
    """Keeps what it is given as its last prediction."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.weight, self.seen = nn.Parameter(torch.ones(1)), []

    def forward(self, x, t, y=None, x_self_cond=None):
        self.seen.append(x_self_cond)
        last = torch.zeros_like(x) if x_self_cond is None else x_self_cond
        return 0.5 * x + 0.1 * last + (0 if y is None else 0.1 * y.reshape(-1, 1, 1, 1))


def self_conditioned(kind, network):
    if kind == "classifier-free":
        return ClassifierFreeGuidance(network, {"y": 0}, 2.0)
    if kind == "classifier":
        return ClassifierGuidance(network, lambda x, t, y: 0.1 * torch.ones_like(x), DIFFUSION)
    if kind == "nested":
        return AutoGuidance(ClassifierFreeGuidance(network, {"y": 0}, 2.0), lambda x, t, y: 0.4 * x, 1.5)
    return AutoGuidance(network, lambda x, t, y: 0.4 * x, 1.5)


@pytest.mark.parametrize("kind", ["classifier-free", "classifier", "auto", "nested"])
def test_guidance_gives_a_self_conditioned_network_the_last_prediction(kind):
    network = SelfConditioned()
    predictions = []
    fd.sample(
        self_conditioned(kind, network),
        fd.samplers.ddim(DIFFUSION, 5),
        shape=(2, 1, 4, 4),
        model_kwargs={"y": torch.tensor([1.0, 2.0])},
        progress=False,
        callback=lambda step: predictions.append(step.prediction.clone()),
    )
    assert network.seen[0] is None
    copies = 2 if kind in ("classifier-free", "nested") else 1
    for given, prediction in zip(network.seen[1:], predictions[:-1], strict=True):
        assert torch.equal(given, torch.cat([prediction] * copies))
    assert all(bool(prediction.any()) for prediction in predictions)
