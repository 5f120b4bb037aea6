"""One network of denoising-diffusion-pytorch and ours, with the same random weights."""

import torch

from fastdiff.nets.lucidrains import Unet
from support import peer_lucidrains
from support.networks import shaken
from support.tolerances import PEER_NETWORK

NETWORKS = {
    "plain": {"dim": 8, "dim_mults": (1, 2)},
    "deep_grey": {"dim": 8, "dim_mults": (1, 2, 4), "channels": 1, "attn_heads": 2, "attn_dim_head": 4},
    "self_condition": {"dim": 8, "dim_mults": (1, 2), "self_condition": True},
    "learned_variance": {"dim": 8, "dim_mults": (1, 2), "learned_variance": True},
    "full_attention": {"dim": 8, "dim_mults": (1, 2), "full_attn": (True, False), "init_dim": 12, "attn_heads": (2, 3)},
    "fourier": {"dim": 8, "dim_mults": (1, 2), "random_fourier_features": True},
    "learned_waves": {"dim": 8, "dim_mults": (1, 2), "learned_sinusoidal_cond": True, "learned_sinusoidal_dim": 6},
}


def both(name):
    peer = peer_lucidrains.load()
    torch.manual_seed(0)
    theirs = shaken(peer.Unet(**NETWORKS[name]).eval(), 0.1)
    ours = Unet(**NETWORKS[name]).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@torch.no_grad()
def assert_same(ours, theirs):
    x = torch.randn(2, theirs.channels, 8, 8)
    t = torch.tensor([0, 777])
    condition = torch.randn_like(x) if theirs.self_condition else None
    for args in ((x, t), (x, t, condition)):
        expected = theirs(*args)
        assert (ours(*args) - expected).abs().max() < PEER_NETWORK * expected.abs().max()
