"""The network, levels and starts that the tests of k-diffusion's samplers share."""

import torch

from fastdiff.compat import k_diffusion as k

SIGMAS = k.get_sigmas_karras(7, 0.05, 40.0).double()
TO_SIGMA_MIN = SIGMAS[:-1]
# Two float64 runs that order their sums otherwise, on states of up to 40.
SAME_RUN = 1e-8


def denoise(x, sigma):
    s = sigma.reshape(-1, 1, 1, 1)
    return x / (1 + s**2) + 0.2 * torch.sin(x / (1 + s))


def start():
    return 40 * torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def one(x, sigma):
    return denoise(x, torch.full((len(x),), float(sigma), dtype=torch.float64))


def down_up(a, b, eta):
    up = min(b, eta * (b**2 * (a**2 - b**2) / a**2) ** 0.5)
    return (b**2 - up**2) ** 0.5, up


# Independent noise from PyTorch's generator.
WHITE = {"noise_sampler": lambda sigma, sigma_next: torch.randn_like(start())}
