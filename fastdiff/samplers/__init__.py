"""Samplers: pure functions from a `Diffusion` to a `CoefficientTable`. NumPy only."""

from fastdiff.samplers.analytic import (
    analytic_ddim,
    analytic_ddpm,
    gaussian_eps_error,
    gaussian_eps_moment,
    optimal_timesteps,
)
from fastdiff.samplers.ancestral import ddpm
from fastdiff.samplers.catalogue import SamplerInfo, describe
from fastdiff.samplers.convergence import convergence_order
from fastdiff.samplers.ddim import ddim, ddim_encode
from fastdiff.samplers.langevin import annealed_langevin, langevin, predictor_corrector
from fastdiff.samplers.levels import LEVEL_SPACINGS, Levels, levels_at, visited
from fastdiff.samplers.multistep import deis, dpm_solver, dpmpp, dpmpp_2m, dpmpp_3m, dpmpp_sde, lms
from fastdiff.samplers.pndm import ipndm, plms, pndm
from fastdiff.samplers.registry import build, names, register
from fastdiff.samplers.repaint import renoise, repaint
from fastdiff.samplers.singlestep import dpm_solver_singlestep, dpmpp_singlestep
from fastdiff.samplers.spacing import SPACINGS, spaced_indices
from fastdiff.samplers.two_stage import dpm2, dpm2_ancestral, dpmpp_sde_singlestep, edm, euler, euler_ancestral, heun
from fastdiff.samplers.unipc import unipc

__all__ = [
    "LEVEL_SPACINGS",
    "SPACINGS",
    "Levels",
    "SamplerInfo",
    "analytic_ddim",
    "analytic_ddpm",
    "annealed_langevin",
    "build",
    "convergence_order",
    "ddim",
    "ddim_encode",
    "ddpm",
    "deis",
    "describe",
    "dpm2",
    "dpm2_ancestral",
    "dpm_solver",
    "dpm_solver_singlestep",
    "dpmpp",
    "dpmpp_2m",
    "dpmpp_3m",
    "dpmpp_sde",
    "dpmpp_sde_singlestep",
    "dpmpp_singlestep",
    "edm",
    "euler",
    "euler_ancestral",
    "gaussian_eps_error",
    "gaussian_eps_moment",
    "heun",
    "ipndm",
    "langevin",
    "levels_at",
    "lms",
    "names",
    "optimal_timesteps",
    "plms",
    "pndm",
    "predictor_corrector",
    "register",
    "renoise",
    "repaint",
    "spaced_indices",
    "unipc",
    "visited",
]
