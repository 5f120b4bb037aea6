"""Where solvers start on schedules that end with hardly any signal."""

import numpy as np
import pytest

from fastdiff import samplers
from fastdiff.process.diffusion import Diffusion
from fastdiff.process.schedule import NoiseSchedule
from fastdiff.samplers.invertible import invertible_decode, invertible_encode
from fastdiff.samplers.levels import noisiest_position, told
from support import gaussian_tables
from support.gaussian_tables import run_table

COSINE = NoiseSchedule.cosine(1000)
BLANK = NoiseSchedule.cosine(1000, max_beta=1.0)
OF_NOISE = ["deis", "dpm_solver", "lms", "ipndm"]
OF_STAGES = ["plms", "pndm", "dpm_solver_singlestep"]


@pytest.fixture(params=[0.95, 0.99, 1.01, 1.05])
def wrong_by_per_cents(request, monkeypatch):
    """The exact network's output times this."""
    exact = gaussian_tables.network_gains
    monkeypatch.setattr(gaussian_tables, "network_gains", lambda *given: request.param * exact(*given))


@pytest.mark.parametrize("prediction", ["eps", "score"])
@pytest.mark.parametrize("schedule", [COSINE, BLANK], ids=["near zero", "zero"])
@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", [*OF_NOISE, *OF_STAGES])
def test_noise_solvers_give_the_data_from_an_imperfect_network(name, steps, schedule, prediction, wrong_by_per_cents):
    diffusion = Diffusion(schedule, prediction)
    table = samplers.build(name, diffusion, steps)
    std = np.sqrt(run_table(table, diffusion, 0.25, start_variance=1.0)[0][-1])
    assert 0.6 < std / 0.5 < 1.3


@pytest.mark.parametrize("steps", [10, 20, 50])
@pytest.mark.parametrize("name", OF_STAGES)
def test_solvers_with_stages_give_the_data_from_v_networks(name, steps, wrong_by_per_cents):
    diffusion = Diffusion(COSINE, "v")
    table = samplers.build(name, diffusion, steps)
    std = np.sqrt(run_table(table, diffusion, 0.25, start_variance=1.0)[0][-1])
    assert 0.6 < std / 0.5 < 1.3


def test_invertible_chain_gives_the_data_from_an_imperfect_network(wrong_by_per_cents):
    diffusion = Diffusion(COSINE, "eps")
    up = run_table(invertible_encode(diffusion, 50), diffusion, 0.25, start_variance=0.25)
    down = run_table(invertible_decode(diffusion, 50), diffusion, 0.25, start_variance=1.0)
    assert 0.6 < np.sqrt(up[0][-1]) < 1.3
    assert 0.6 < np.sqrt(down[0][-1]) / 0.5 < 1.3
    # What five iterations a step leave of the error.
    assert up[1] * down[1] == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("prediction", ["eps", "v", "x0", "score"])
@pytest.mark.parametrize("num_timesteps", [50, 100, 400, 1000, 4000])
def test_linear_schedules_are_taken_whole(num_timesteps, prediction):
    diffusion = Diffusion(NoiseSchedule.linear(num_timesteps), prediction)
    assert noisiest_position(diffusion, "auto") == noisiest_position(diffusion, "auto", True) == num_timesteps - 1
    assert told(diffusion) is diffusion
    for name in (*OF_NOISE, *OF_STAGES, "edm", "unipc"):
        assert samplers.build(name, diffusion, 20) == samplers.build(name, diffusion, 20, lam_min=None)


def test_lam_min_leaves_other_networks_and_given_timesteps_alone():
    v, eps = Diffusion(COSINE, "v"), Diffusion(COSINE, "eps")
    for name in OF_NOISE:
        assert samplers.build(name, v, 20)["t"][0] == 999
        assert samplers.build(name, v, 20).note == ""
        assert samplers.build(name, eps, timesteps=[999, 500, 0])["t"][0] == 999
    assert samplers.unipc(eps, 20)["t"][0] == 999
    assert samplers.unipc(eps, 20, predict_x0=False)["t"][0] == 946


def test_lam_min_is_the_level_that_sampling_starts_at():
    diffusion = Diffusion(COSINE, "v")
    table = samplers.deis(diffusion, 10, lam_min=-3)
    lam = 0.5 * COSINE.log_snr
    first = int(table["t"][0])
    assert lam[first] >= -3 > lam[first + 1]
    assert len(table) == 10
    assert f"t = {first}" in repr(table)
    assert type(table).from_json(table.to_json()) == table


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "quad", "logsnr", "karras"])
@pytest.mark.parametrize("final", ["zero", "sigma_min"])
def test_lam_min_bounds_every_spacing(spacing, final):
    table = samplers.deis(Diffusion(COSINE, "eps"), 20, spacing=spacing, final=final)
    assert len(table) == 20
    assert table["t"].max() <= 946
    assert np.all(np.diff(table["t"]) < 0)


def test_lam_min_takes_as_many_levels_as_there_are():
    assert len(samplers.deis(Diffusion(COSINE, "eps"), 1000)) == 947
    assert len(samplers.deis(Diffusion(COSINE, "eps"))) == 947
    with pytest.raises(ValueError, match="from 1 to 1000"):
        samplers.deis(Diffusion(COSINE, "eps"), 1001)


@pytest.mark.parametrize("lam_min", ["low", 9.0, float("nan")])
def test_lam_min_refuses_what_is_no_level(lam_min):
    with pytest.raises(ValueError, match="lam_min must be"):
        samplers.deis(Diffusion(COSINE, "eps"), 10, lam_min=lam_min)


@pytest.mark.parametrize("name", [*OF_NOISE, *OF_STAGES])
def test_zero_terminal_snr_is_named_where_a_solver_cannot_start(name):
    with pytest.raises(ValueError, match="zero terminal SNR"):
        samplers.build(name, Diffusion(BLANK, "v"), 10, lam_min=None)
    with pytest.raises(ValueError, match="zero terminal SNR"):
        samplers.ddim(Diffusion(BLANK, "eps"), 10)


@pytest.mark.parametrize("prediction", ["v", "x0"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("steps", [1, 2, 3, 10, 21])
def test_dpmpp_singlestep_starts_without_signal(steps, order, prediction):
    diffusion = Diffusion(BLANK, prediction)
    table = samplers.dpmpp_singlestep(diffusion, steps, order=order, clip=None)
    assert len(table) == steps
    std = np.sqrt(run_table(table, diffusion, 0.25, start_variance=1.0)[0][-1])
    if steps > 9:
        # Of order 1 at the ends, in 10 steps.
        assert std == pytest.approx(0.5, rel=0.15)


def test_dpmpp_singlestep_refuses_a_first_group_without_signal():
    with pytest.raises(ValueError, match="zero terminal SNR"):
        samplers.dpmpp_singlestep(Diffusion(BLANK, "v"), 3, groups=[2, 1])


def test_edm_spends_its_levels_where_there_is_signal():
    for prediction in ("eps", "v"):
        table = samplers.edm(Diffusion(COSINE, prediction), 20)
        assert (table.alphas[0] / table.sigmas[0]) >= np.exp(-2.5)
