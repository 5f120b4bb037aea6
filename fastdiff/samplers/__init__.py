"""Samplers: pure functions from a `Diffusion` to a `CoefficientTable`. NumPy only."""

from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.ddim import ddim
from fastdiff.samplers.levels import LEVEL_SPACINGS, Levels, levels_at, visited
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms, pndm
from fastdiff.samplers.registry import SamplerInfo, build, describe, names
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep
from fastdiff.samplers.spacing import SPACINGS, spaced_indices
from fastdiff.samplers.unipc import unipc

__all__ = [
    "LEVEL_SPACINGS",
    "SPACINGS",
    "Levels",
    "SamplerInfo",
    "build",
    "ddim",
    "ddpm",
    "deis",
    "describe",
    "dpm_solver",
    "dpm_solver_singlestep",
    "dpmpp",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_sde",
    "dpmpp_singlestep",
    "ipndm",
    "levels_at",
    "lms",
    "names",
    "plms",
    "pndm",
    "spaced_indices",
    "unipc",
    "visited",
]
