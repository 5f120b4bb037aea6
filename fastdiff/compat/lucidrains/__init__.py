"""denoising-diffusion-pytorch's names on fastdiff."""

from fastdiff.compat.absent import explained
from fastdiff.compat.lucidrains.continuous import (
    ContinuousTimeGaussianDiffusion,
    VParamContinuousTimeGaussianDiffusion,
)
from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion, ModelPrediction
from fastdiff.compat.lucidrains.elucidated import ElucidatedDiffusion
from fastdiff.compat.lucidrains.learned import LearnedGaussianDiffusion
from fastdiff.compat.lucidrains.trainer import Trainer
from fastdiff.nets.lucidrains import Unet

__all__ = [
    "ContinuousTimeGaussianDiffusion",
    "ElucidatedDiffusion",
    "GaussianDiffusion",
    "LearnedGaussianDiffusion",
    "ModelPrediction",
    "Trainer",
    "Unet",
    "VParamContinuousTimeGaussianDiffusion",
]

_ABSENT = (
    "Dataset1D", "GaussianDiffusion1D", "InvSqrtDecayLRSched", "KarrasUnet", "KarrasUnet1D", "KarrasUnet3D",
    "Trainer1D", "Unet1D", "WeightedObjectiveGaussianDiffusion", "XMWrapper",
)  # fmt: skip
_ADVICE = f"it has {', '.join(__all__)}; take others from denoising_diffusion_pytorch; see docs/migration.md"
__getattr__ = explained(__name__, dict.fromkeys(_ABSENT, _ADVICE))
