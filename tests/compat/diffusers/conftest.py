"""Quiet diffusers: its own log and the deprecations that it causes are not what these tests are about."""

import pytest


@pytest.fixture(autouse=True)
def quiet_diffusers():
    """Their log says at each run that it changes lower_order_final."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)
