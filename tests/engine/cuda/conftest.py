"""The CUDA runtime without a GPU, which at the end of a test holds nothing and saw nothing wrong."""

import gc

import pytest

from support import fake_cuda


@pytest.fixture
def runtime():
    runtime = fake_cuda.runtime()
    runtime.reset()
    yield runtime
    gc.collect()
    violation, live, errors = runtime.violation(), runtime.live(), list(runtime.errors)
    runtime.reset()
    assert (violation, live, errors) == ("", {}, [])
