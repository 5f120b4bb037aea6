"""Tests of fastdiff.evaluation.comparison: on Gaussian data the exact network is known, and which solver is best."""

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.evaluation import EvaluationSettings, ImageSet, measure, open_features
from fastdiff.evaluation.comparison import Candidate, candidates, compare_samplers, drawn, long_run
from fastdiff.files.images import to_uint8
from support.gaussian_networks import gaussian_network
from support.tolerances import FLOAT64_DIFFERENCE

DIFFUSION = fd.Diffusion(fd.NoiseSchedule.cosine(100))
SHAPE = (4, 4, 1)


@pytest.fixture(scope="module")
def draw():
    model = gaussian_network(DIFFUSION, 0.09)

    def drawn_by(table, ids):
        shape = (len(ids), 1, 4, 4)
        x = fd.sample(model, table, shape=shape, seed=1, sample_ids=list(ids), progress=False)
        return to_uint8(x).permute(0, 2, 3, 1).numpy()

    return drawn_by


def test_candidates_are_every_sampler_with_every_number():
    found = candidates(DIFFUSION, ["ddim", "unipc"], [5, 10], np.full(100, 0.5))
    assert [(one.name, one.table.num_evaluations) for one in found] == [
        ("ddim", 5), ("ddim", 10), ("unipc", 5), ("unipc", 10), ("ddim optimal", 5), ("ddim optimal", 10),
    ]  # fmt: skip
    optimal = fd.samplers.optimal_timesteps(DIFFUSION, np.full(100, 0.5), 5)
    assert sorted(found[4].table["t"].astype(int).tolist()) == optimal


@pytest.mark.parametrize(
    ("names", "steps", "said"),
    [
        (["ddim", "ddim"], [5], "samplers must name each once"),
        (["ddim"], [5, 5], "steps must name each once"),
        (["dimm"], [5], "unknown sampler 'dimm'"),
        (["ddim"], [101], "steps"),
    ],
)
def test_wrong_candidates_are_refused(names, steps, said):
    with pytest.raises(ValueError, match=said):
        candidates(DIFFUSION, names, steps)


def test_more_evaluations_come_nearer_and_the_second_order_nearest(draw):
    features, settings, ids = (
        open_features("pixels", 1),
        EvaluationSettings(("fid", "kid"), 50, compared=100),
        range(100),
    )
    reference = measure(drawn(draw, long_run(DIFFUSION, 50), ids, SHAPE, "its own"), features, settings)
    told = []
    trials = compare_samplers(
        candidates(DIFFUSION, ["ddim", "dpmpp_2m"], [4, 25]), draw, ids, reference, features, settings, SHAPE,
        progress=lambda done, total: told.append((done, total)),
    )  # fmt: skip
    distance = {(one.name, one.evaluations): one.distance for one in trials}
    assert distance["ddim", 25] < distance["ddim", 4] / 4
    assert distance["dpmpp_2m", 25] < distance["ddim", 25]
    assert all(one.seconds > 0 and one.kernel_error > 0 for one in trials)
    np.testing.assert_array_equal(trials[0].first, draw(candidates(DIFFUSION, ["ddim"], [4])[0].table, range(16)))
    assert told[-1] == (100 * 58, 100 * 58)


def test_a_reference_by_the_same_table_is_at_no_distance(draw):
    features, settings, ids = open_features("pixels", 1), EvaluationSettings(("fid",), 30), range(60)
    table = long_run(DIFFUSION, 10)
    reference = measure(ImageSet.of_array(draw(table, ids)), features, settings)
    (trial,) = compare_samplers([Candidate("same", table)], draw, ids, reference, features, settings, SHAPE)
    assert trial.distance == pytest.approx(0, abs=FLOAT64_DIFFERENCE)
    assert trial.kernel_distance is None
