"""Self-conditioned networks: sampled with their last prediction, as lucidrains' own loops do it."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff import samplers
from fastdiff.process.table import CoefficientTable
from fastdiff.sampling.self_conditioning import SelfConditioning

COSINE = fd.Diffusion(fd.NoiseSchedule.cosine(20))


class Recorder(torch.nn.Module):
    """Predicts a share of its input, and keeps what it was given."""

    self_condition = True

    def __init__(self):
        super().__init__()
        self.share = torch.nn.Parameter(torch.tensor(0.5))
        self.seen = []

    def forward(self, x, t, x_self_cond=None):
        self.seen.append((x.clone(), None if x_self_cond is None else x_self_cond.clone()))
        return self.share * x + (0 if x_self_cond is None else 0.1 * x_self_cond)


def run(table, **options):
    model = Recorder()
    steps = []
    shape = (2, 1, 4, 4)
    x = fd.sample(
        model,
        table,
        shape=shape,
        progress=False,
        callback=lambda step: steps.append(step.prediction.clone() if step.prediction is not None else None),
        **options,
    )
    return model, steps, x


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpmpp", "heun"])
def test_sample_feeds_the_last_prediction_of_the_image(name):
    model, predictions, _ = run(samplers.build(name, COSINE, 6))
    kept = [prediction for prediction in predictions if prediction is not None]
    assert model.seen[0][1] is None
    for (_, given), last in zip(model.seen[1:], kept, strict=False):
        torch.testing.assert_close(given, last, rtol=0, atol=0)


def test_sample_feeds_the_image_that_a_predicted_noise_stands_for():
    table = samplers.build("ipndm", COSINE, 6)
    assert not table.data_prediction
    model, predictions, _ = run(table)
    for i in range(1, len(model.seen)):
        x, noise = model.seen[i - 1][0], predictions[i - 1]
        alpha, sigma = np.asarray(table.alphas)[i - 1], np.asarray(table.sigmas)[i - 1]
        torch.testing.assert_close(model.seen[i][1], ((x - sigma * noise) / alpha).float())


def test_sample_gives_nothing_where_the_caller_does():
    model, _, _ = run(samplers.ddim(COSINE, 4), model_kwargs={"x_self_cond": torch.ones(2, 1, 4, 4)})
    assert all(bool((given == 1).all()) for _, given in model.seen)


def test_encode_and_decode_evaluate_without_an_earlier_prediction():
    model = Recorder()
    x = torch.linspace(-1, 1, 16).reshape(1, 1, 4, 4)
    latent = fd.editing.encode(model, COSINE, x, steps=5, order=1)
    fd.editing.decode(model, COSINE, latent, steps=5, order=1)
    assert {given for _, given in model.seen} == {None}


def test_a_table_of_noise_without_levels_is_refused():
    table = CoefficientTable({"t": [1, 0], "pm": [1, 1], "c0": [1, 1]}, data_prediction=False)
    with pytest.raises(ValueError, match="take a sampler that predicts x0"):
        SelfConditioning(table)
