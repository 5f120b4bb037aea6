"""What holds for every sampler in the registry, those to come included."""

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff import Diffusion, NoiseSchedule, samplers
from fastdiff.process.diffusion import Prediction, Variance
from fastdiff.process.table import CoefficientTable
from fastdiff.samplers import registry
from fastdiff.samplers.registry import SAMPLERS
from support.tolerances import FLOAT64, FLOAT64_DIFFERENCE

ALL = samplers.names(with_statistics=True)
# Times fall along the rows of a sampler, but for the jumps back into noise and the way from data to noise.
JUMPS, RISES = {"repaint"}, {"ddim_encode"}


def statistics(name, diffusion):
    return {"eps_moment": samplers.gaussian_eps_moment(diffusion, 0.3)} if name.startswith("analytic") else {}


def random_diffusion(data):
    num_timesteps = data.draw(st.integers(1, 60), "T")
    betas = data.draw(st.lists(st.floats(1e-6, 0.3), min_size=num_timesteps, max_size=num_timesteps), "betas")
    prediction = data.draw(st.sampled_from(get_args(Prediction)), "prediction")
    return Diffusion(
        NoiseSchedule.from_betas(betas), prediction, data.draw(st.sampled_from(get_args(Variance)), "variance")
    )


@settings(max_examples=300)
@given(st.data())
def test_samplers_hold_their_invariants(data):
    diffusion = random_diffusion(data)
    name = data.draw(st.sampled_from(ALL), "sampler")
    steps = data.draw(st.integers(1, diffusion.num_timesteps), "steps")
    options = statistics(name, diffusion)
    if name == "renoise":
        # By default there are as many timesteps as half of the way up has.
        options["strength"] = 1.0
    if "spacing" in SAMPLERS[name].parameters:
        by_level = "continuous" in SAMPLERS[name].parameters
        spacings = samplers.SPACINGS + (samplers.LEVEL_SPACINGS if by_level else ())
        options["spacing"] = data.draw(st.sampled_from(spacings), "spacing")
    table = samplers.build(name, diffusion, steps, **options)
    rows = np.delete(table.rows(), 4, axis=1)
    assert np.isfinite(rows).all()
    assert table.num_evaluations == steps or (name in JUMPS and table.num_evaluations > steps)
    assert table["s"][-1] == 0
    direction = np.diff(table["t"])
    assert name in JUMPS or ((direction >= 0) if name in RISES else (direction <= 0)).all()
    assert ((table["t"] >= 0) & (table["t"] <= diffusion.num_timesteps - 1)).all()
    assert len(table.alphas) == len(table.sigmas) == len(table) + 1
    np.testing.assert_allclose(table.alphas**2 + table.sigmas**2, 1, rtol=FLOAT64_DIFFERENCE)
    clean = 0 if name in RISES else -1
    assert (table.alphas[clean], table.sigmas[clean]) == (1, 0)
    again = CoefficientTable.from_json(table.to_json())
    assert all(np.array_equal(again.columns[key], values) for key, values in table.columns.items())


@pytest.mark.parametrize("name", ALL)
def test_samplers_refuse_impossible_steps(name):
    diffusion = Diffusion(NoiseSchedule.cosine(10))
    for steps in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match="steps"):
            samplers.build(name, diffusion, steps, **statistics(name, diffusion))


@pytest.mark.parametrize("name", ALL)
def test_samplers_reach_every_prediction_alike(name):
    """The four predictions are four ways to say one thing: the same table for x_0 as a function of x and x_0."""
    maps = []
    # Their own choice follows what is predicted.
    options = {"order": 3} if name in ("ipndm", "plms", "pndm") else {}
    for prediction in get_args(Prediction):
        diffusion = Diffusion(NoiseSchedule.linear(50), prediction)
        table = samplers.build(name, diffusion, 12, **statistics(name, diffusion), **options)
        maps.append([table[key] for key in ("t", "cx", "cb", "c0", "c1", "c2", "c3", "s", "push")])
    if not np.any(table["cm"]) and not np.any(table["bm"]):
        for other in maps[1:]:
            for a, b in zip(maps[0], other, strict=True):
                np.testing.assert_allclose(a, b, rtol=FLOAT64, atol=FLOAT64)


def test_names_without_statistics_build_from_a_diffusion_alone():
    diffusion = Diffusion(NoiseSchedule.cosine(100))
    assert set(ALL) - set(samplers.names()) == {"analytic_ddpm", "analytic_ddim"}
    for name in samplers.names():
        assert len(samplers.build(name, diffusion, 20)) >= 20
    with pytest.raises(ValueError, match="eps_moment"):
        samplers.build("analytic_ddpm", diffusion, 20)


def test_samplers_unknown_name_suggests():
    with pytest.raises(ValueError, match="did you mean 'ddim'"):
        samplers.build("dimm", Diffusion(NoiseSchedule.cosine(10)))


def test_register_adds_a_sampler_and_refuses_a_taken_name(monkeypatch):
    monkeypatch.setattr(registry, "SAMPLERS", dict(registry.SAMPLERS))
    registry.register("mine", samplers.ddim)
    diffusion = Diffusion(NoiseSchedule.linear(100))
    assert samplers.build("mine", diffusion, 5, eta=0.5) == samplers.ddim(diffusion, 5, eta=0.5)
    with pytest.raises(ValueError, match="already"):
        registry.register("ddim", samplers.ddim)
    with pytest.raises(TypeError, match="function"):
        registry.register("other", "ddim")


def test_tables_and_coefficients_are_those_that_were_written_down():
    """`tables.json` holds each sampler's table as it was when all processes were variance preserving."""
    written = json.loads((Path(__file__).parent / "tables.json").read_text())
    for one in written.values():
        diffusion = Diffusion.from_dict(one["diffusion"])
        assert diffusion.to_dict() == one["diffusion"]
        np.testing.assert_allclose(diffusion.noising_table()[::333], one["noising"], rtol=FLOAT64)
        np.testing.assert_allclose(diffusion.posterior_table()[::333], one["posterior"], rtol=FLOAT64)
        assert set(one["tables"]) <= set(ALL)
        for name, table in one["tables"].items():
            old = CoefficientTable.from_dict(table)
            jumps = {"jump_length": 1, "jump_repeats": 2} if name == "repaint" else {}
            options = {"eps_moment": samplers.gaussian_eps_moment(diffusion, 0.25)} if "analytic" in name else jumps
            if name == "plms":
                # So few steps have no improved one unless the timesteps are given.
                options = {"timesteps": sorted(set(table["columns"]["t"]), reverse=True), "order": 1}
            new = samplers.build(name, diffusion, 3, **options)
            old.check_process(diffusion)
            # Timesteps that are given have no note of where sampling starts.
            assert new.to_dict().keys() | {"note"} == table.keys() | {"note"}
            assert new.to_dict()["columns"].keys() == table["columns"].keys()
            for column in old.columns:
                # Other processors round exponentials and logarithms otherwise.
                np.testing.assert_allclose(
                    new[column], old[column], rtol=FLOAT64_DIFFERENCE, atol=FLOAT64, err_msg=name
                )
