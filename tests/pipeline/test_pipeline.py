"""Pipeline: loading, sampling and scoring give what the functions beneath give."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

import fastdiff as fd
from fastdiff import likelihood
from fastdiff.files.data import DataScaling
from fastdiff.sampling.guidance import ClassifierFreeGuidance
from support.networks import small_unet
from support.tolerances import FLOAT32_DEEP, FLOAT32_RUN, FLOAT32_SUM


@pytest.fixture
def diffusion() -> fd.Diffusion:
    return fd.Diffusion(fd.NoiseSchedule.cosine(20))


def test_pipeline_sample_equals_sample_with_the_table(diffusion: fd.Diffusion) -> None:
    unet = small_unet()
    pipe = fd.Pipeline(unet, diffusion)
    table = fd.samplers.ddim(diffusion, 5, eta=0.5)
    expected = fd.sample(unet, table, shape=(3, 1, 8, 8), seed=4, progress=False)
    assert torch.equal(pipe.sample(3, sampler="ddim", steps=5, eta=0.5, seed=4), expected)
    assert torch.equal(pipe.sample(3, sampler=table, seed=4), expected)


def test_pipeline_sample_is_the_same_in_smaller_batches(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(num_classes=3), diffusion)
    labels = torch.tensor([0, 1, 2, 0, 1])
    whole = pipe.sample(5, steps=4, labels=labels, sample_ids=range(7, 12))
    parts = pipe.sample(5, steps=4, labels=labels, sample_ids=range(7, 12), batch_size=2)
    torch.testing.assert_close(parts, whole, rtol=FLOAT32_SUM, atol=FLOAT32_SUM)
    assert pipe.sample(0, steps=4, labels=labels[:0]).shape == (0, 1, 8, 8)


def test_pipeline_takes_all_timesteps_for_ddpm_and_fifty_for_others() -> None:
    pipe = fd.Pipeline(small_unet(), fd.Diffusion(fd.NoiseSchedule.linear(60)))
    for sampler, rows in (("ddpm", 60), ("ddim", 50)):
        seen = []
        pipe.sample(1, sampler=sampler, callback=lambda step, seen=seen: seen.append(step.row))
        assert len(seen) == rows
        seen.clear()
        pipe.sample(1, sampler=sampler, callback=lambda step, seen=seen: seen.append(step.row), callback_rows=[0, -1])
        assert seen == [0, rows - 1]


@pytest.mark.parametrize("levels", [256, 17, None], ids=["8-bit", "17 values", "continuous"])
def test_pipeline_likelihood_follows_the_scaling_of_the_data(diffusion: fd.Diffusion, levels: int | None) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion, DataScaling(levels))
    grid = torch.randint(0, levels or 256, (2, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    x = 2 * grid / ((levels or 256) - 1) - 1
    decoder = "gaussian" if levels is None else "discrete"
    expected = likelihood.bound(pipe.unet, diffusion, x, decoder=decoder, levels=levels or 256, seed=3)
    assert torch.equal(pipe.likelihood(x, seed=3).total, expected.total)


def test_pipeline_saves_what_it_loads(diffusion: fd.Diffusion, tmp_path: Path) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion, DataScaling(17))
    again = fd.Pipeline.from_pretrained(pipe.save_pretrained(tmp_path / "model"))
    assert again.diffusion == diffusion
    assert again.scaling == DataScaling(17)
    assert again.image_shape == (1, 8, 8)
    assert torch.equal(again.sample(2, steps=3), pipe.sample(2, steps=3))


def test_pipeline_refuses_what_does_not_fit(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion)
    with_classes = fd.Pipeline(small_unet(num_classes=3), diffusion)
    with pytest.raises(ValueError, match="did you mean"):
        pipe.sample(1, sampler="dimm")
    with pytest.raises(ValueError, match="a table is given"):
        pipe.sample(1, sampler=fd.samplers.ddim(diffusion, 3), steps=4)
    with pytest.raises(ValueError, match="no classes"):
        pipe.sample(1, labels=torch.tensor([0]))
    with pytest.raises(ValueError, match="has 3 classes"):
        with_classes.sample(1)
    with pytest.raises(ValueError, match=r"0\.\.2"):
        with_classes.sample(1, labels=torch.tensor([3]))
    with pytest.raises(ValueError, match=r"int64 \[2\]"):
        with_classes.sample(2, labels=torch.tensor([1]))
    with pytest.raises(ValueError, match="batch_size"):
        pipe.sample(1, batch_size=0)
    with pytest.raises(ValueError, match="unknown method"):
        pipe.likelihood(torch.zeros(1, 1, 8, 8), method="bond")


def test_pipeline_edits_as_the_functions_do(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    net = pipe.unet
    latent = pipe.encode(x, steps=6)
    assert torch.equal(latent, fd.editing.encode(net, diffusion, x, steps=6))
    assert torch.equal(pipe.decode(latent, steps=6), fd.editing.decode(net, diffusion, latent, steps=6))
    assert pipe.round_trip_error(x, steps=6).shape == (2,)
    assert torch.equal(pipe.vary(x, strength=0, seed=5), x)
    assert torch.equal(pipe.vary(x, strength=1, seed=5), pipe.sample(2, seed=5))
    assert pipe.vary(x, strength=[0.2, 0.6], steps=5).shape == (2, 2, 1, 8, 8)
    assert pipe.interpolate(x, -x, weight=0.5, steps=4).shape == x.shape
    mask = torch.ones(8, 8)
    mask[2:4] = 0
    filled = pipe.inpaint(x, mask, steps=4, seed=1)
    assert torch.equal(filled[:, :, 4:], x[:, :, 4:])
    assert not torch.equal(filled[:, :, 2:4], x[:, :, 2:4])
    shown = pipe.progressive(2, steps=5, rows=3, seed=2)
    assert torch.equal(shown.samples, pipe.sample(2, steps=5, seed=2))
    assert shown.previews.shape == (3, 2, 1, 8, 8)
    eps = net(x, torch.tensor([7, 7]))
    sigma = float(diffusion.signal_noise()[1][7])
    torch.testing.assert_close(pipe.score(x, 7), -eps / sigma, rtol=FLOAT32_RUN, atol=FLOAT32_DEEP)
    torch.testing.assert_close(pipe.views().eps(x, 7), eps, rtol=FLOAT32_RUN, atol=FLOAT32_DEEP)
    # Stored values go through the data's own scaling.
    stored = (torch.arange(64).reshape(1, 1, 8, 8) * 4).to(torch.uint8)
    assert torch.equal(pipe.vary(stored, strength=0), DataScaling().to_model(stored))


def test_pipeline_scores_by_every_method(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(num_classes=2), diffusion, DataScaling(17))
    x = torch.randint(0, 17, (2, 1, 8, 8)).to(torch.uint8)
    labels = torch.tensor([0, 1])
    kinds = {
        "bound": likelihood.Bound,
        "estimate": likelihood.Bound,
        "ode": likelihood.OdeLikelihood,
        "iwae": likelihood.ImportanceBound,
        "rate_distortion": likelihood.RateDistortion,
    }
    options = {"ode": {"tolerance": 0.05}, "iwae": {"trajectories": 2}}
    for method, kind in kinds.items():
        assert isinstance(pipe.likelihood(x, method, labels=labels, **options.get(method, {})), kind)


def test_pipeline_bound_to_a_requested_error_is_the_estimate(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion, DataScaling(17))
    x = torch.randint(0, 17, (6, 1, 8, 8)).to(torch.uint8)
    some = pipe.likelihood(x, method="bound", target_error=1.0, allocation="stratified")
    assert some.mean_sampling_error <= 1.0
    assert some.evaluations < 6 * diffusion.num_timesteps
    same = pipe.likelihood(x, method="estimate", target_error=1.0, allocation="stratified")
    assert torch.equal(some.total, same.total)


def test_pipeline_refuses_what_does_not_fit_to_edit_or_score(diffusion: fd.Diffusion) -> None:
    pipe = fd.Pipeline(small_unet(), diffusion)
    x = torch.zeros(1, 1, 8, 8)
    colour = torch.zeros(1, 3, 8, 8)
    for call in (pipe.encode, pipe.decode, pipe.vary, pipe.likelihood, lambda v: pipe.score(v, 3)):
        with pytest.raises(ValueError, match="channels"):
            call(colour)
    with pytest.raises(ValueError, match="strength"):
        pipe.vary(x, strenght=0.4)
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        pipe.vary(x + 100)
    with pytest.raises(ValueError, match="probes"):
        pipe.likelihood(x - 1, method="ode", probes=0)
    with pytest.raises(ValueError, match="lies off it"):
        pipe.likelihood(x + 0.1234)
    with pytest.raises(ValueError, match="mask"):
        pipe.inpaint(x, torch.ones(5, 5))
    continuous = fd.Pipeline(small_unet(), diffusion, DataScaling(None))
    with pytest.raises(ValueError, match=r"\[-1, 1\]"):
        continuous.likelihood(x + 1.5)
    learned = fd.Pipeline(small_unet(), fd.Diffusion(diffusion.schedule, "eps", "learned_range"))
    with pytest.raises(ValueError, match="variance is learned"):
        learned.likelihood(x - 1)


def test_representations_take_a_line_or_two():
    config = fd.UNetConfig(image_size=8, channels=16, channel_mult=(1,), num_res_blocks=1, attention_resolutions=(),
                           norm_groups=8)  # fmt: skip
    unet, process = fd.UNet(config), fd.Diffusion(fd.NoiseSchedule.cosine(10))
    for shown, named in (
        (fd.Pipeline(unet, process, metadata={"path": "somewhere"}), "from somewhere"),
        (fd.Views(unet, process), "Views(UNet"),
        (fd.compile(unet), "'fast'"),
    ):
        text = repr(shown)
        assert named in text
        assert len(text) < 240
        assert "\n" not in text


@pytest.fixture
def named(diffusion: fd.Diffusion) -> fd.Pipeline:
    """Two classes by name, and the null class."""
    return fd.Pipeline(small_unet(num_classes=3), diffusion, metadata={"data": {"classes": ["cat", "dog"]}})


def test_pipeline_guides_by_the_null_class(named: fd.Pipeline) -> None:
    """As the wrapper does with the network in PyTorch."""
    labels = torch.tensor([1, 0])
    guided = ClassifierFreeGuidance(named.unet, {"y": 2}, 3.0)
    table = fd.samplers.ddim(named.diffusion, 4)
    expected = fd.sample(guided, table, shape=(2, *named.image_shape), model_kwargs={"y": labels})
    found = named.sample(2, steps=4, labels=["dog", "cat"], guidance=3)
    torch.testing.assert_close(found, expected, rtol=FLOAT32_RUN, atol=FLOAT32_RUN)
    assert float((found - named.sample(2, steps=4, labels=labels)).abs().max()) > 1e-3
    torch.testing.assert_close(
        named.sample(2, steps=4, labels=labels, guidance=1.0),
        named.sample(2, steps=4, labels=labels),
        rtol=FLOAT32_RUN,
        atol=FLOAT32_RUN,
    )
    x = torch.rand(2, *named.image_shape) * 2 - 1
    for find in (
        lambda **how: named.vary(x, strength=1.0, steps=4, labels=labels, **how),
        lambda **how: named.inpaint(x, torch.zeros(x.shape[-2:]), steps=4, jump_repeats=1, labels=labels, **how),
    ):
        plain, strong = find(), find(guidance=3.0, null_label=2)
        assert float((plain - strong).abs().max()) > 1e-3
        torch.testing.assert_close(find(guidance=1.0), plain, rtol=FLOAT32_RUN, atol=FLOAT32_RUN)


def test_pipeline_warns_of_a_null_class_that_was_never_trained(named: fd.Pipeline) -> None:
    named.metadata["training"] = {"steps": 3}
    with pytest.warns(UserWarning, match="no label was dropped in the training of this network, so its null class 2"):
        named.sample(1, steps=1, labels=[0], guidance=2.0)
    named.metadata["training"] = {"steps": 3, "label_dropout": 0.1}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        named.sample(1, steps=1, labels=[0], guidance=2.0)


def test_pipeline_refuses_guidance_that_cannot_be(named: fd.Pipeline, diffusion: fd.Diffusion) -> None:
    nameless = fd.Pipeline(small_unet(num_classes=3), diffusion)
    with pytest.raises(ValueError, match="does not say which of its 3 classes is the null one"):
        nameless.sample(1, labels=[0], guidance=2.0)
    with pytest.raises(ValueError, match="guidance needs a network with classes"):
        fd.Pipeline(small_unet(), diffusion).sample(1, guidance=2.0)
    with pytest.raises(ValueError, match="guidance must be a finite number, 1 for none, got '3'"):
        named.sample(1, labels=[0], guidance="3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="a null label is for guidance"):
        named.sample(1, labels=[0], null_label=2)


def test_pipeline_samples_a_seed_per_image(named: fd.Pipeline) -> None:
    options: dict[str, Any] = {"sampler": "ddpm", "steps": 3, "runner": "native"}
    together = named.sample(3, labels=[0, 1, 0], seed=[4, 9, 4], batch_size=2, **options)
    alone = [named.sample(1, labels=[label], seed=seed, **options) for label, seed in ((0, 4), (1, 9))]
    assert torch.equal(together, torch.cat([alone[0], alone[1], alone[0]]))
    with pytest.raises(ValueError, match="one per sample, 2 of them"):
        named.sample(2, labels=[0, 1], seed=[1, 2, 3])


def test_pipeline_takes_a_table_of_its_process_alone(named: fd.Pipeline, tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(fd.samplers.ddim(named.diffusion, 3).to_json())
    expected = named.sample(1, labels=[0], steps=3)
    assert torch.equal(named.sample(1, labels=[0], sampler=file), expected)
    other = fd.Diffusion(fd.NoiseSchedule.linear(300), named.diffusion.prediction)
    with pytest.raises(ValueError, match="built for another process"):
        named.sample(1, labels=[0], sampler=fd.samplers.ddim(other, 3))


@pytest.mark.parametrize("seed", ["1", None, 2**64], ids=str)
def test_pipeline_refuses_seeds_that_are_none(named: fd.Pipeline, seed: object) -> None:
    with pytest.raises(ValueError, match=r"seed must be a whole number from 0 to 2\^64 - 1"):
        named.sample(2, labels=[0, 1], seed=seed)  # type: ignore[arg-type]


def test_pipeline_refuses_options_of_a_wrong_type(named: fd.Pipeline) -> None:
    x = torch.zeros(2, *named.image_shape)
    with pytest.raises(ValueError, match="eta of sampler 'ddim' must be a number, got 'a'"):
        named.sample(2, labels=[0, 1], eta="a")
    with pytest.raises(ValueError, match="clip of likelihood method 'rate_distortion' must be a number or"):
        named.likelihood(x, "rate_distortion", labels=[0, 1], clip="a")
    with pytest.raises(ValueError, match="order of encode must be a whole number, got 'a'"):
        named.encode(x, labels=[0, 1], order="a")
