"""The warning of samples that run away."""

import logging
import warnings

import pytest
import torch

import fastdiff as fd
from fastdiff.sampling import runaway

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(1000), "eps")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch):
    monkeypatch.setattr(runaway, "_said", set())


def broken_from(t_broken, value):
    def network(x, t):
        return torch.full_like(x, value) if int(t[0]) <= t_broken else 0.99 * x

    return network


def run(network, table, **options):
    return fd.sample(network, table, shape=(2, 1, 4, 4), progress=False, **options)


def test_runaway_names_the_row_the_time_and_a_safer_sampler(caplog):
    table = fd.samplers.deis(DIFFUSION, 10, lam_min=None)
    first = int(table["t"][0])
    with caplog.at_level(logging.WARNING, "fastdiff"), pytest.warns(RuntimeWarning, match=f"row 0 of 10.*t = {first}"):
        run(lambda x, t: 0.9 * x, table)
    assert "dpmpp" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_runaway_names_the_row_where_a_network_breaks(value):
    table = fd.samplers.deis(DIFFUSION, 10)
    row = 6
    with pytest.warns(RuntimeWarning, match=rf"row {row} of 10 on, t = {int(table['t'][row])}:"):
        run(broken_from(table["t"][row], value), table)


def test_runaway_is_said_once_for_a_sampler():
    table = fd.samplers.deis(DIFFUSION, 5)
    with pytest.warns(RuntimeWarning):
        run(broken_from(1000, float("nan")), table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(broken_from(1000, float("nan")), table)


def test_runaway_blames_the_network_where_the_image_is_bounded():
    with pytest.warns(RuntimeWarning, match="weights"):
        run(broken_from(1000, float("nan")), fd.samplers.ddim(DIFFUSION, 5))


def test_runaway_is_silent_on_good_samples_and_empty_batches():
    calls = []

    def network(x, t):
        calls.append(len(x))
        return 0.99 * x

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(network, fd.samplers.ddim(DIFFUSION, 5))
        assert len(calls) == 5
        fd.sample(network, fd.samplers.ddim(DIFFUSION, 5), shape=(0, 1, 4, 4), progress=False)


def test_runaway_leaves_the_result_as_it_is():
    table = fd.samplers.deis(DIFFUSION, 10, lam_min=None)
    with pytest.warns(RuntimeWarning):
        first = run(lambda x, t: 0.9 * x, table)
    assert torch.equal(first, run(lambda x, t: 0.9 * x, table))
