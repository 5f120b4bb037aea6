"""A sampler as a name, a table, a file or a function, in `sample` and in a pipeline."""

import functools

import pytest
import torch

import fastdiff as fd
from support.gaussian_networks import gaussian_network

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(100), "v")
TABLE = fd.samplers.ddim(DIFFUSION, 7, eta=0.5)


def run(sampler, **options):
    network = gaussian_network(DIFFUSION, 0.25)
    return fd.sample(network, sampler, shape=(2, 1, 4, 4), seed=3, progress=False, **options)


def test_sample_takes_a_sampler_in_every_form(tmp_path):
    expected = run(TABLE)
    file = tmp_path / "mine.json"
    file.write_text(TABLE.to_json())
    assert torch.equal(run("ddim", diffusion=DIFFUSION, steps=7, options={"eta": 0.5}), expected)
    assert torch.equal(run(fd.samplers.ddim, diffusion=DIFFUSION, steps=7, options={"eta": 0.5}), expected)
    assert torch.equal(run(functools.partial(fd.samplers.ddim, eta=0.5), diffusion=DIFFUSION, steps=7), expected)
    assert torch.equal(run(lambda diffusion, steps: TABLE, diffusion=DIFFUSION), expected)
    assert torch.equal(run(TABLE, diffusion=DIFFUSION), expected)
    assert torch.equal(run(file), expected)
    assert torch.equal(run(str(file), diffusion=DIFFUSION), expected)


def test_sample_takes_fifty_steps_where_none_are_given():
    rows = []
    run("ddim", diffusion=DIFFUSION, callback=lambda step: rows.append(step.num_rows))
    run("ddpm", diffusion=DIFFUSION, callback=lambda step: rows.append(step.num_rows), callback_rows=[0])
    assert rows[0] == 50
    assert rows[-1] == 100


OTHER = fd.Diffusion(fd.NoiseSchedule.linear(100), "v")


@pytest.mark.parametrize(
    ("sampler", "options", "error", "message"),
    [
        (TABLE, {"diffusion": OTHER}, ValueError, "built for another process"),
        (lambda diffusion, steps: TABLE, {"diffusion": OTHER}, ValueError, "built for another process"),
        (TABLE, {"steps": 5}, ValueError, "steps cannot be chosen"),
        (TABLE, {"options": {"eta": 0.1}}, ValueError, "eta cannot be chosen"),
        ("ddim", {}, ValueError, "give diffusion"),
        (fd.samplers.ddim, {}, ValueError, "give diffusion"),
        ("dimm", {"diffusion": DIFFUSION}, ValueError, "did you mean 'ddim'"),
        ("ddim", {"diffusion": DIFFUSION, "options": {"etta": 0.1}}, ValueError, "did you mean 'eta'"),
        ("nowhere.json", {}, ValueError, "No such file"),
        (3, {"diffusion": DIFFUSION}, TypeError, "a sampler is a name"),
        (lambda diffusion, steps: 3, {"diffusion": DIFFUSION}, TypeError, "must return a CoefficientTable"),
    ],
)
def test_sample_says_what_is_wrong_with_a_sampler(sampler, options, error, message):
    with pytest.raises(error, match=message):
        run(sampler, **options)


def test_sample_refuses_a_file_that_holds_no_table(tmp_path):
    file = tmp_path / "mine.json"
    file.write_text("[1]")
    with pytest.raises(ValueError, match=r"mine\.json.*coefficient table"):
        run(file)
