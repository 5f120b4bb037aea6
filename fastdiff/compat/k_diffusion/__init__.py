"""k-diffusion's and EDM's functions on coefficient tables: the update of each evaluation is one fused op.

`import fastdiff.compat.k_diffusion as K` gives K.sampling, K.external and K.utils, and every name here as well.

Source: Crowson, k-diffusion, sampling.py and external.py; Karras et al. (2022), arXiv:2206.00364, algorithm 2.
"""

from fastdiff.compat.k_diffusion import external, sampling, utils
from fastdiff.compat.k_diffusion.external import (
    CompVisDenoiser,
    CompVisVDenoiser,
    DenoiserFromNetwork,
    DiscreteEpsDDPMDenoiser,
    DiscreteSchedule,
    DiscreteVDDPMDenoiser,
    NetworkFromDenoiser,
    OpenAIDenoiser,
    VDenoiser,
)
from fastdiff.compat.k_diffusion.sampling import (
    BrownianTreeNoiseSampler,
    append_zero,
    default_noise_sampler,
    edm_sampler,
    get_ancestral_step,
    get_sigmas_exponential,
    get_sigmas_karras,
    get_sigmas_polyexponential,
    get_sigmas_vp,
    sample_dpm_2,
    sample_dpm_2_ancestral,
    sample_dpm_adaptive,
    sample_dpm_fast,
    sample_dpmpp_2m,
    sample_dpmpp_2m_sde,
    sample_dpmpp_2s_ancestral,
    sample_dpmpp_3m_sde,
    sample_dpmpp_sde,
    sample_euler,
    sample_euler_ancestral,
    sample_heun,
    sample_lms,
    to_d,
)
from fastdiff.compat.k_diffusion.utils import append_dims

__all__ = [
    "BrownianTreeNoiseSampler",
    "CompVisDenoiser",
    "CompVisVDenoiser",
    "DenoiserFromNetwork",
    "DiscreteEpsDDPMDenoiser",
    "DiscreteSchedule",
    "DiscreteVDDPMDenoiser",
    "NetworkFromDenoiser",
    "OpenAIDenoiser",
    "VDenoiser",
    "append_dims",
    "append_zero",
    "default_noise_sampler",
    "edm_sampler",
    "external",
    "get_ancestral_step",
    "get_sigmas_exponential",
    "get_sigmas_karras",
    "get_sigmas_polyexponential",
    "get_sigmas_vp",
    "sample_dpm_2",
    "sample_dpm_2_ancestral",
    "sample_dpm_adaptive",
    "sample_dpm_fast",
    "sample_dpmpp_2m",
    "sample_dpmpp_2m_sde",
    "sample_dpmpp_2s_ancestral",
    "sample_dpmpp_3m_sde",
    "sample_dpmpp_sde",
    "sample_euler",
    "sample_euler_ancestral",
    "sample_heun",
    "sample_lms",
    "sampling",
    "to_d",
    "utils",
]
