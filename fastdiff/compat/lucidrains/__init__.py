"""denoising-diffusion-pytorch's names on fastdiff."""

from fastdiff.compat.lucidrains.diffusion import GaussianDiffusion, ModelPrediction
from fastdiff.compat.lucidrains.trainer import Trainer
from fastdiff.compat.lucidrains.unet import Unet

__all__ = ["GaussianDiffusion", "ModelPrediction", "Trainer", "Unet"]
