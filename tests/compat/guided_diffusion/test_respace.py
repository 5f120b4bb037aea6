"""Processes of fewer steps: which they keep, and the times that the network sees."""

import numpy as np
import pytest

import fastdiff as fd
from fastdiff.compat.guided_diffusion import gaussian_diffusion as gd
from fastdiff.compat.guided_diffusion import respace
from support.guided_process import BETAS, ORACLE, T, network
from support.tolerances import FLOAT64


@pytest.mark.parametrize("rescale", [False, True])
def test_spaced_diffusion_shows_the_network_the_original_times(rescale):
    spaced = respace.SpacedDiffusion(
        [0, 3, 7, 11],
        betas=BETAS,
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType.FIXED_SMALL,
        loss_type=gd.LossType.MSE,
        rescale_timesteps=rescale,
    )
    np.testing.assert_allclose(spaced.alphas_cumprod, ORACLE.abar[[0, 3, 7, 11]], rtol=FLOAT64)
    seen = []

    def model(x, t):
        seen.append(float(t[0]))
        return network(x, t.float())

    out = spaced.p_sample_loop(model, (1, 2, 4, 4), device="cpu")
    assert out.shape == (1, 2, 4, 4)
    expected = [t * (1000 / T if rescale else 1) for t in (11, 7, 3, 0)]
    assert seen == pytest.approx(expected)
    assert spaced.diffusion.schedule.timesteps[::-1].tolist() == pytest.approx(expected)
    # The same loop by fastdiff's own sampler sees the same times.
    seen.clear()
    fd.sample(model, fd.samplers.ddpm(spaced.diffusion), shape=(1, 2, 4, 4), progress=False)
    # The sampler gives the network its times in float32.
    assert seen == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("spec", ["250", "100", "50", "27", "10,10,15,20", "90,60,60,20,20", [71], "ddim25", "ddim50"])
def test_space_timesteps_keeps_what_theirs_keeps(spec):
    if isinstance(spec, str) and spec.startswith("ddim"):
        count = int(spec[4:])
        expected = set(range(0, 1000, 1000 // count))
    else:
        counts = [int(part) for part in spec.split(",")] if isinstance(spec, str) else spec
        expected, start = set(), 0
        for i, count in enumerate(counts):
            size = 1000 // len(counts) + (1 if i < 1000 % len(counts) else 0)
            place = 0.0
            for _ in range(count):
                expected.add(start + round(place))
                place += (size - 1) / (count - 1)
            start += size
    assert respace.space_timesteps(1000, spec) == expected
    with pytest.raises(ValueError, match="cannot divide section"):
        respace.space_timesteps(10, "11")


def test_space_timesteps_takes_any_number_for_ddim():
    for count in (7, 30, 600, 999):
        assert len(respace.space_timesteps(1000, f"ddim{count}")) == count
