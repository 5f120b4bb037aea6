"""denoising-diffusion-pytorch's names on fastdiff."""

from typing import Any

from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion, ModelPrediction
from fastdiff.compat.lucidrains.trainer import Trainer
from fastdiff.nets.lucidrains import Unet

__all__ = ["GaussianDiffusion", "ModelPrediction", "Trainer", "Unet"]

_ABSENT = (
    "ContinuousTimeGaussianDiffusion", "Dataset1D", "ElucidatedDiffusion", "GaussianDiffusion1D", "InvSqrtDecayLRSched",
    "KarrasUnet", "KarrasUnet1D", "KarrasUnet3D", "LearnedGaussianDiffusion", "Trainer1D", "Unet1D",
    "VParamContinuousTimeGaussianDiffusion", "WeightedObjectiveGaussianDiffusion", "XMWrapper",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    if name in _ABSENT:
        # An AttributeError would lose its text in "from ... import".
        raise ImportError(
            f"fastdiff.compat.lucidrains has no {name}: it has {', '.join(__all__)}. Take {name} from "
            "denoising_diffusion_pytorch; docs/migration.md lists what is not here"
        )
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
