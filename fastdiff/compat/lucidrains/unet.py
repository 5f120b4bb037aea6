"""`Unet`, the network of denoising-diffusion-pytorch."""

from fastdiff.nets.lucidrains import Unet, UnetShape

__all__ = ["Unet", "UnetShape"]
