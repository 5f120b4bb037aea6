"""Quiet diffusers, whose log and deprecations are not what these tests are about, and one Brownian path for all."""

import pytest


@pytest.fixture(autouse=True)
def quiet_diffusers():
    """Their log says at each run that it changes lower_order_final."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    before = diffusers.utils.logging.get_verbosity()
    diffusers.utils.logging.set_verbosity_error()
    yield
    diffusers.utils.logging.set_verbosity(before)


@pytest.fixture(autouse=True)
def one_path(monkeypatch):
    """A Brownian path that nobody gave a seed is the same for both sides of a comparison."""
    diffusers = pytest.importorskip("diffusers", reason="diffusers is in the test extra")
    if not diffusers.utils.is_torchsde_available():
        return
    from diffusers.schedulers import scheduling_dpmsolver_sde as peer

    class Tree(peer.BatchedBrownianTree):
        def __init__(self, x, t0, t1, seed=None, **options):
            super().__init__(x, t0, t1, 5 if seed is None else seed, **options)

    monkeypatch.setattr(peer, "BatchedBrownianTree", Tree)
