"""denoising-diffusion-pytorch's names on fastdiff."""

from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion, ModelPrediction
from fastdiff.compat.lucidrains.trainer import Trainer
from fastdiff.nets.lucidrains import Unet

__all__ = ["GaussianDiffusion", "ModelPrediction", "Trainer", "Unet"]
