"""What each sampler says of itself."""

import pytest

from fastdiff import samplers
from fastdiff.samplers.registry import SAMPLERS

ALL = samplers.names(with_statistics=True)


@pytest.mark.parametrize("name", ALL)
def test_samplers_describe_themselves(name):
    info = samplers.describe(name)
    assert info.name == name
    assert len(info.summary) >= 4
    assert info.source
    assert info.evaluations_per_step in (1, 2)
    assert getattr(samplers, name) is SAMPLERS[name].build
    assert info.stochastic == (info.order == 0)
