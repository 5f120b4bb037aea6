"""Building a table of 1,000 rows: under 50 ms, whatever the sampler."""

import pytest

from fastdiff import Diffusion, NoiseSchedule, samplers

DIFFUSION = Diffusion(NoiseSchedule.linear(1000))
LIMIT_SECONDS = 0.05
OPTIONS = {
    name: {"eps_moment": samplers.gaussian_eps_moment(DIFFUSION, 0.25)} for name in ("analytic_ddpm", "analytic_ddim")
}
OPTIONS |= {"renoise": {"strength": 1.0}, "unipc": {"order": 3}}


@pytest.mark.parametrize("arm", samplers.names(with_statistics=True))
def test_table_build_speed(benchmark, arm):
    benchmark.group = "build a table"
    table = benchmark(samplers.build, arm, DIFFUSION, 1000, **OPTIONS.get(arm, {}))
    benchmark.extra_info["rows"] = len(table)
    assert table.num_evaluations >= 1000
    assert benchmark.stats.stats.median < LIMIT_SECONDS
