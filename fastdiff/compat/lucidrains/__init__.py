"""denoising-diffusion-pytorch's names on fastdiff."""

from fastdiff.compat.absent import explained
from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion, ModelPrediction
from fastdiff.compat.lucidrains.trainer import Trainer
from fastdiff.nets.lucidrains import Unet

__all__ = ["GaussianDiffusion", "ModelPrediction", "Trainer", "Unet"]

_ABSENT = (
    "ContinuousTimeGaussianDiffusion", "Dataset1D", "ElucidatedDiffusion", "GaussianDiffusion1D", "InvSqrtDecayLRSched",
    "KarrasUnet", "KarrasUnet1D", "KarrasUnet3D", "LearnedGaussianDiffusion", "Trainer1D", "Unet1D",
    "VParamContinuousTimeGaussianDiffusion", "WeightedObjectiveGaussianDiffusion", "XMWrapper",
)  # fmt: skip
_ADVICE = f"it has {', '.join(__all__)}; take others from denoising_diffusion_pytorch; see docs/migration.md"
__getattr__ = explained(__name__, dict.fromkeys(_ABSENT, _ADVICE))
