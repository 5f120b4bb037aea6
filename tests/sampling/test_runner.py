"""sample(): closed forms on Gaussian data, and the promise that images depend on (seed, sample id) alone."""

import numpy as np
import pytest
import torch

import fastdiff as fd
from fastdiff.process import noise
from fastdiff.process.noise import Stream
from support.networks import redrawn
from support.tolerances import BATCH_SPLIT, FLOAT32_DEEP, FLOAT32_FEW, FLOAT32_SUM

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.linear(100, 1e-3, 0.2))
S2 = 0.25


def gaussian_model(diffusion=DIFFUSION, variance=S2):
    """The exact eps network for x0 ~ N(0, variance): eps* = sqrt(1 - abar) x / (abar variance + 1 - abar)."""
    abar = torch.tensor(diffusion.schedule.alphas_cumprod, dtype=torch.float32)

    def model(x, t):
        a = abar[t].reshape(-1, *[1] * (x.ndim - 1))
        return torch.sqrt(1 - a) * x / (a * variance + 1 - a)

    return model


def test_sample_reaches_the_exact_gaussian():
    table = fd.samplers.ddpm(DIFFUSION, clip=None, variance="fixed_small")
    x = fd.sample(gaussian_model(), table, shape=(4096, 1, 4, 4), seed=1, progress=False)
    n = x.numel()
    # fixed_small leaves out the variance of x0 given x_t, so the exact variance of the run is that of the table.
    expected = 1.0
    for r in range(len(table)):
        a = DIFFUSION.schedule.alphas_cumprod[int(table["t"][r])]
        eps = np.sqrt(1 - a) / (a * S2 + 1 - a)
        gain = table["cx"][r] + table["c0"][r] * (table["px"][r] + table["pm"][r] * eps)
        expected = gain**2 * expected + table["s"][r] ** 2
    assert abs(float(x.mean())) < 5 * np.sqrt(expected / n)
    assert abs(float(x.var()) - expected) < 5 * expected * np.sqrt(2 / n)
    assert 0.85 * S2 < expected < S2


def test_sample_ddim_follows_the_closed_form():
    """With the exact network every DDIM row multiplies the state by a known number."""
    table = fd.samplers.ddim(DIFFUSION, 10, clip=None)
    x = fd.sample(gaussian_model(), table, shape=(2, 3, 4, 4), seed=5, progress=False)
    gain = 1.0
    for r in range(len(table)):
        a = DIFFUSION.schedule.alphas_cumprod[int(table["t"][r])]
        eps = np.sqrt(1 - a) / (a * S2 + 1 - a)
        gain *= table["cx"][r] + table["c0"][r] * (table["px"][r] + table["pm"][r] * eps)
    start = noise.normals(5, [0, 1], 48, Stream.INITIAL, 0).reshape(2, 3, 4, 4)
    np.testing.assert_allclose(x.numpy(), gain * start, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)


@pytest.fixture(scope="module")
def unet():
    torch.manual_seed(0)
    return redrawn(fd.UNet(fd.UNetConfig.preset("digits", dropout=0.5)), 0.05)


@pytest.mark.parametrize("name", fd.samplers.names())
def test_sample_depends_on_seed_and_sample_id_alone(unet, name):
    table = fd.samplers.build(name, DIFFUSION, 10, **({"eta": 0.7} if name == "ddim" else {}))
    starts_from_image = table.init_scale == 0

    def run(ids, seed=3):
        # An image per id, the same for all seeds.
        images = torch.from_numpy(noise.normals(0, list(ids), 64, Stream.INITIAL, 0)).reshape(-1, 1, 8, 8).clamp(-1, 1)
        init = images if starts_from_image else None
        return fd.sample(unet, table, shape=(len(ids), 1, 8, 8), seed=seed, sample_ids=ids, x_init=init, progress=False)

    whole = run(range(20, 29))
    parts = torch.cat([run([20]), run([21, 22]), run(range(23, 29))])
    shuffled = run([28, 20, 24])
    # Without a clip an untrained network lets values grow; the tolerance is relative to them.
    tolerance = BATCH_SPLIT * max(1.0, float(whole.abs().max()))
    assert (whole - parts).abs().max() <= tolerance
    assert (whole[[8, 0, 4]] - shuffled).abs().max() <= tolerance
    assert torch.equal(whole, run(range(20, 29)))
    if table.is_stochastic or not starts_from_image:
        assert (whole - run(range(20, 29), seed=4)).abs().max() > 0.1


@pytest.mark.parametrize("name", ["renoise", "ddim_encode"])
def test_sample_refuses_to_edit_nothing(name):
    with pytest.raises(ValueError, match="starts from an image: give it as x_init"):
        fd.sample(gaussian_model(), fd.samplers.build(name, DIFFUSION, 4), shape=(1, 1, 2, 2))


def test_sample_runs_modules_in_eval_mode_and_restores_them(unet):
    unet.train()
    unet.middle_block[0].eval()
    modes = [m.training for m in unet.modules()]
    table = fd.samplers.ddim(DIFFUSION, 2)
    a = fd.sample(unet, table, shape=(1, 1, 8, 8), progress=False)
    assert [m.training for m in unet.modules()] == modes
    b = fd.sample(unet.eval(), table, shape=(1, 1, 8, 8), progress=False)
    assert torch.equal(a, b)


def test_sample_callback_sees_every_row():
    table = fd.samplers.ddim(DIFFUSION, 4, clip=0.5)
    seen = []
    result = fd.sample(
        gaussian_model(),
        table,
        shape=(2, 1, 3, 3),
        progress=False,
        callback=lambda step: seen.append((step.row, step.t, step.x.clone(), step.prediction.clone())),
    )
    assert [s[0] for s in seen] == [0, 1, 2, 3]
    assert [s[1] for s in seen] == table["t"].tolist()
    assert torch.equal(seen[-1][2], result)
    assert all(float(s[3].abs().max()) <= 0.5 for s in seen)
    # The last row of DDIM returns its prediction.
    torch.testing.assert_close(seen[-1][3], result)


def test_sample_callback_sees_chosen_rows():
    table = fd.samplers.ddim(DIFFUSION, 5)
    seen = []
    run = {"shape": (2, 1, 3, 3), "progress": False, "callback": lambda step: seen.append(step.row)}
    fd.sample(gaussian_model(), table, callback_rows=[1, -1], **run)
    assert seen == [1, 4]
    with pytest.raises(ValueError, match="callback_rows must be rows of the table, -5 to 4, got 5"):
        fd.sample(gaussian_model(), table, callback_rows=[5], **run)
    with pytest.raises(ValueError, match="without a callback"):
        fd.sample(gaussian_model(), table, callback_rows=[1], **run | {"callback": None})


def test_sample_continues_from_a_row():
    table = fd.samplers.ddpm(DIFFUSION, 8)
    states = []
    whole = fd.sample(gaussian_model(), table, shape=(2, 1, 4, 4), seed=2, progress=False,
                      callback=lambda step: states.append(step.x.clone()))  # fmt: skip
    x_init = states[4].clone()
    rest = fd.sample(gaussian_model(), table, shape=(2, 1, 4, 4), seed=2, x_init=x_init, start_row=5, progress=False)
    assert torch.equal(whole, rest)
    assert torch.equal(x_init, states[4])
    done = fd.sample(gaussian_model(), table, shape=(2, 1, 4, 4), x_init=whole, start_row=8, progress=False)
    assert torch.equal(done, whole)


def test_sample_gives_the_model_its_times_and_types():
    seen = []

    def model(x, t, label):
        seen.append((x.dtype, t.dtype, t.tolist(), label))
        return x

    fd.sample(model, fd.samplers.ddim(DIFFUSION, 2), shape=(3, 1, 2, 2), model_kwargs={"label": 7}, progress=False)
    assert seen == [(torch.float32, torch.int64, [99] * 3, 7), (torch.float32, torch.int64, [49] * 3, 7)]
    seen.clear()
    columns = {"t": [1.5, 0.25], "ci": [0.5, 1.0], "cx": [1.0, 1.0]}
    fd.sample(model, fd.CoefficientTable(columns), shape=(1, 1, 2, 2), model_kwargs={"label": 0}, progress=False)
    assert [s[1] for s in seen] == [torch.float32] * 2
    assert [s[2] for s in seen] == [[1.5], [0.25]]


def test_sample_scales_the_models_input_and_the_first_state():
    inputs = []

    def model(x, t):
        inputs.append(x.clone())
        return x

    table = fd.CoefficientTable({"t": [1.0], "ci": [0.5], "cx": [1.0]}, init_scale=80.0)
    x = fd.sample(model, table, shape=(1, 1, 2, 2), seed=4, progress=False)
    np.testing.assert_allclose(x.numpy().ravel(), 80 * noise.normals(4, [0], 4, Stream.INITIAL, 0)[0], rtol=FLOAT32_FEW)
    torch.testing.assert_close(inputs[0], 0.5 * x)


def test_sample_uses_rows_without_an_evaluation():
    calls = []
    table = fd.CoefficientTable({"t": [1.0, 1.0], "evaluate": [0, 1], "cx": [2.0, 1.0], "cm": [0.0, 1.0]})
    x_init = torch.ones(1, 1, 2, 2)
    out = fd.sample(lambda x, t: calls.append(1) or x, table, shape=(1, 1, 2, 2), x_init=x_init, progress=False)
    assert len(calls) == 1
    assert torch.equal(out, torch.full((1, 1, 2, 2), 4.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_sample_types(unet, dtype):
    net = fd.UNet(unet.config).to(dtype)
    x = fd.sample(net, fd.samplers.ddpm(DIFFUSION, 3), shape=(2, 1, 8, 8), dtype=dtype, progress=False)
    assert x.dtype == dtype
    assert torch.isfinite(x).all()


def test_sample_learned_variance():
    diffusion = fd.Diffusion(DIFFUSION.schedule, "eps", "learned_range")
    table = fd.samplers.ddpm(diffusion, clip=None)
    exact = gaussian_model()

    def model(x, t):
        # v = 1: the upper end of the range, beta_t.
        return torch.cat([exact(x, t), torch.ones_like(x)], dim=1)

    large = fd.samplers.ddpm(diffusion, clip=None, variance="fixed_large")
    a = fd.sample(model, table, shape=(2, 1, 4, 4), seed=1, progress=False)
    b = fd.sample(model, large, shape=(2, 1, 4, 4), seed=1, progress=False)
    torch.testing.assert_close(a, b, rtol=FLOAT32_DEEP, atol=FLOAT32_SUM)


def test_sample_other_ranks_and_empty_batches():
    table = fd.samplers.ddim(DIFFUSION, 3)
    assert fd.sample(gaussian_model(), table, shape=(5, 2), progress=False).shape == (5, 2)
    assert fd.sample(gaussian_model(), table, shape=(0, 1, 4, 4), progress=False).shape == (0, 1, 4, 4)


def test_sample_shows_progress_only_when_asked(capsys):
    fd.sample(gaussian_model(), fd.samplers.ddim(DIFFUSION, 3), shape=(1, 1, 2, 2), progress=False)
    assert capsys.readouterr().out == ""


BAD = {
    "shape": ({"shape": (4,)}, "shape must be"),
    "fraction": ({"shape": (1, 1, 2.5, 2)}, "shape must be"),
    "seed": ({"seed": -1}, "seed"),
    "ids": ({"sample_ids": [1, 2, 3]}, "sample_ids must be 2"),
    "negative ids": ({"sample_ids": [0, -1]}, "must not be negative"),
    "float ids": ({"sample_ids": [0.5, 1.5]}, "whole numbers"),
    "runner": ({"runner": "eagre"}, "did you mean 'eager'"),
    "start": ({"start_row": 2}, "needs x_init"),
    "start beyond": ({"start_row": 9, "x_init": torch.zeros(2, 1, 2, 2)}, "start_row must be"),
    "x_init shape": ({"x_init": torch.zeros(1, 1, 2, 2)}, "x_init must have shape"),
    "x_init type": ({"x_init": torch.zeros(2, 1, 2, 2, dtype=torch.int64)}, "floating point"),
    "x_init nan": ({"x_init": torch.full((2, 1, 2, 2), torch.nan)}, "NaN"),
}


@pytest.mark.parametrize("case", BAD)
def test_sample_refuses(case):
    options, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        fd.sample(
            gaussian_model(), fd.samplers.ddim(DIFFUSION, 3), **({"shape": (2, 1, 2, 2), "progress": False} | options)
        )


def test_sample_refuses_outputs_of_the_wrong_shape():
    table = fd.samplers.ddim(DIFFUSION, 3)
    with pytest.raises(ValueError, match="model's output must have shape"):
        fd.sample(lambda x, t: x[:, :1], table, shape=(2, 3, 2, 2), progress=False)
    with pytest.raises(ValueError, match="must return a tensor"):
        fd.sample(lambda x, t: (x,), table, shape=(2, 3, 2, 2), progress=False)
    learned = fd.samplers.ddpm(fd.Diffusion(DIFFUSION.schedule, "eps", "learned"))
    with pytest.raises(ValueError, match="model's output must have shape"):
        fd.sample(lambda x, t: x, learned, shape=(2, 3, 2, 2), progress=False)


@pytest.mark.parametrize("grad", [torch.no_grad, torch.inference_mode], ids=["no_grad", "inference"])
def test_sample_is_not_changed_by_a_network_that_writes_to_its_input(grad):
    table = fd.samplers.ddim(DIFFUSION, 5)
    with grad():
        images = [
            fd.sample(network, table, shape=(2, 1, 8, 8), progress=False)
            for network in (lambda x, t: torch.relu(x) * 0.1, lambda x, t: x.relu_() * 0.1)
        ]
    assert torch.equal(*images)


def test_sample_refuses_a_network_that_writes_to_its_input_later_on():
    calls = []

    def network(x, t):
        calls.append(1)
        return (x.relu_() if len(calls) == 3 else torch.relu(x)) * 0.1

    with pytest.raises(RuntimeError, match="wrote to its input"):
        fd.sample(network, fd.samplers.ddim(DIFFUSION, 5), shape=(2, 1, 8, 8), progress=False)
