"""What a table remembers of its process, and what it refuses."""

import json

import numpy as np
import pytest

from fastdiff import CoefficientTable, Diffusion, NoiseSchedule, samplers
from fastdiff.process.record import ProcessRecord

COSINE = Diffusion(NoiseSchedule.cosine(1000), "v")


@pytest.mark.parametrize("name", samplers.names())
def test_record_is_in_the_table_of_every_sampler_and_its_file(name):
    table = samplers.build(name, COSINE, 6)
    assert table.process == ProcessRecord.of(COSINE)
    read = CoefficientTable.from_json(table.to_json())
    assert read.process == table.process
    assert read == table
    read.check_process(COSINE)
    read.check_process(Diffusion(NoiseSchedule.cosine(1000), "v", "fixed_large"))


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (Diffusion(NoiseSchedule.cosine(1000), "eps"), "prediction 'eps'"),
        (Diffusion(NoiseSchedule.linear(1000), "v"), "schedule 'linear'"),
        (Diffusion(NoiseSchedule.cosine(4000), "v"), "T = 4000"),
        (Diffusion(NoiseSchedule.cosine(500), "v"), "T = 500"),
        (Diffusion(NoiseSchedule.cosine(1000).respace("100"), "v"), "T = 100"),
    ],
    ids=["prediction", "schedule", "more timesteps", "fewer timesteps", "respaced"],
)
def test_record_refuses_another_process_with_a_sentence(other, word):
    with pytest.raises(ValueError, match="built for another process") as caught:
        samplers.ddim(COSINE, 5).check_process(other)
    assert word in str(caught.value)
    assert "prediction 'v'" in str(caught.value)


def test_record_of_some_timesteps_fits_the_whole_process():
    samplers.ddpm(COSINE.respace("50")).check_process(COSINE)
    samplers.ddim(COSINE.subset(range(400)), 20).check_process(COSINE)


def test_record_takes_betas_that_were_rounded_to_float32():
    betas = COSINE.schedule.betas.astype(np.float32).astype(np.float64)
    samplers.ddim(COSINE, 5).check_process(Diffusion(NoiseSchedule.from_betas(betas), "v"))


def test_record_is_the_same_for_a_start_without_signal():
    diffusion = Diffusion(NoiseSchedule.cosine(1000, max_beta=1.0), "v")
    table = CoefficientTable.from_json(samplers.ddim(diffusion, 5).to_json())
    table.check_process(diffusion)
    with pytest.raises(ValueError, match="another process"):
        table.check_process(COSINE)


def test_record_may_be_missing():
    data = samplers.ddim(COSINE, 5).to_dict()
    del data["process"]
    table = CoefficientTable.from_dict(data)
    assert table.process is None
    table.check_process(Diffusion(NoiseSchedule.linear(100)))


@pytest.mark.parametrize(
    "process",
    [[1], "cosine", {}, {"num_timesteps": 5}, {"nam": 1}, {"num_timesteps": -1}, {"times": [None]}, {"times": []},
     {"log_snr": [1e400]}, {"prediction": 3}],
)  # fmt: skip
def test_record_of_a_wrong_type_is_a_sentence(process):
    data = samplers.ddim(COSINE, 5).to_dict()
    data["process"] = data["process"] | process if isinstance(process, dict) and process else process
    if process == {"num_timesteps": 5}:
        del data["process"]["times"]
    with pytest.raises(ValueError, match=r"process|times|log_snr|prediction|num_timesteps"):
        CoefficientTable.from_json(json.dumps(data))


def test_record_of_a_builder_of_ones_own():
    samplers.register("in_test_of_records", lambda diffusion, steps: CoefficientTable({"t": np.zeros(steps)}))
    try:
        assert samplers.build("in_test_of_records", COSINE, 3).process == ProcessRecord.of(COSINE)
    finally:
        del samplers.registry.SAMPLERS["in_test_of_records"]
