"""denoising-diffusion-pytorch's names on fastdiff."""

from fastdiff.compat.lucidrains.unet import Unet

__all__ = ["Unet"]
