"""Samplers: pure functions from a `Diffusion` to a `CoefficientTable`. NumPy only."""

from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.registry import build, names
from fastdiff.samplers.spacing import SPACINGS, spaced_indices

__all__ = ["SPACINGS", "build", "ddim", "ddpm", "names", "spaced_indices"]
