"""Loading files of denoising-diffusion-pytorch: an architecture of its own, with its process in the file."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from fastdiff.files.checkpoint import LoadedModel, WeightKind
from fastdiff.files.data import DataScaling
from fastdiff.nets.lucidrains import Unet
from fastdiff.nets.unet import UNet
from fastdiff.process.checks import check_keys, height_and_width
from fastdiff.process.diffusion import Diffusion, Prediction
from fastdiff.process.schedule import NoiseSchedule, recognise_schedule

__all__ = ["LUCIDRAINS_HINTS", "infer_process", "infer_unet", "load_lucidrains"]

LUCIDRAINS_HINTS = ("image_size", "sinusoidal_pos_emb_theta", "self_condition")
"""What a caller may say of a network in a lucidrains file."""

DEFAULT_THETA = 10000
"""Of lucidrains' `Unet`."""


def load_lucidrains(
    tensors: Mapping[str, Tensor],
    path: Path,
    kind: WeightKind | None,
    *,
    device: torch.device | str,
    unet: Mapping[str, Any],
    diffusion: Diffusion | None,
) -> LoadedModel:
    """A model from the state dict of lucidrains' `GaussianDiffusion`, or of its `Unet` alone.

    The network is a `fastdiff.compat.lucidrains.Unet`, which has blocks that `fastdiff.UNet` does not: it samples and
    is scored as any other, but cannot be converted.

    Args:
        tensors: Of the process, with the network under "model.", or of the network.
        path: For messages.
        kind: What the weights are, where that is known.
        device: Where the network goes.
        unet: What no such file says: "image_size" in pixels, one number or (height, width);
            "sinusoidal_pos_emb_theta", lucidrains' default where it is left out; "self_condition", which is asked for
            where the channels of a network without its process leave it open.
        diffusion: The process, where the file holds the network alone.

    Raises:
        ValueError: something is left open, or the names are of a version of lucidrains before 2.
    """
    check_keys(dict(unet), LUCIDRAINS_HINTS, f"unet= for {path}: such a file says everything else")
    prefix = "model." if "model.init_conv.weight" in tensors else ""
    network = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    process = {name: value for name, value in tensors.items() if prefix and not name.startswith(prefix)}
    said: dict[str, str] = {"image_size": "unet=", "objective": "the loss weights in the file"}
    if "image_size" not in unet:
        raise ValueError(f"{path} does not say the size of the images: give unet={{'image_size': 128}}, for example")
    height, width = height_and_width("image_size", unet["image_size"])
    chosen = unet.get("self_condition")
    if chosen is not None and not isinstance(chosen, bool):
        raise ValueError(f"self_condition must be True, False or None, got {chosen!r}")
    try:
        settings = infer_unet(network, self_condition=chosen, is_process="betas" in process)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    except (KeyError, IndexError) as error:
        raise _of_another_version(path, error) from error
    said["self_condition"] = "the channels" if chosen is None else "unet="
    if not settings["learned_sinusoidal_cond"]:
        settings["sinusoidal_pos_emb_theta"] = _theta(unet.get("sinusoidal_pos_emb_theta", DEFAULT_THETA))
        given = "sinusoidal_pos_emb_theta" in unet
        said["sinusoidal_pos_emb_theta"] = "unet=" if given else f"nothing: lucidrains' default, {DEFAULT_THETA}"
    elif "sinusoidal_pos_emb_theta" in unet:
        raise ValueError(f"{path} has learned frequencies: leave sinusoidal_pos_emb_theta out of unet=")
    try:
        with torch.device("meta"):
            model = Unet(**settings)
        model.to_empty(device=device)
        model.load_state_dict(network)
    except (KeyError, RuntimeError) as error:
        raise _of_another_version(path, error) from error
    if diffusion is None:
        if "betas" not in process or "loss_weight" not in process:
            raise ValueError(f"{path} does not say the process (T, schedule, objective): give diffusion=")
        diffusion = infer_process(process, learned_variance=model.out_dim == 2 * model.channels)
    else:
        said["diffusion"] = "diffusion="
    if diffusion.learned_variance != (model.out_dim == 2 * model.channels):
        raise ValueError(f"{path}: {model.out_dim} output channels do not fit variance={diffusion.variance!r}")
    metadata = {
        "path": str(path),
        "format": "lucidrains",
        "weights": kind,
        "said": said,
        "step": None,
        "training": None,
        "data": {"shape": [model.channels, height, width]},
        "versions": None,
    }
    # A Pipeline needs of its network that it can be called, and its `config`.
    return LoadedModel(cast(UNet, model.eval()), diffusion, DataScaling(), metadata)


def _of_another_version(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path} has the names of denoising-diffusion-pytorch, but not those of its version 2: {error}")


def _theta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 < value < math.inf:
        raise ValueError(f"sinusoidal_pos_emb_theta must be a number above 1, got {value!r}")
    return value


def infer_unet(
    tensors: Mapping[str, Tensor], *, self_condition: bool | None = None, is_process: bool = True
) -> dict[str, Any]:
    """Arguments of `Unet` from its state dict; `sinusoidal_pos_emb_theta` and `dropout` keep their defaults.

    Args:
        tensors: The state dict.
        self_condition: Whether the network is self-conditioned; the channels tell when None.
        is_process: Whether the network comes with its process. lucidrains' processes take as many channels out as the
            images have, or, without self-conditioning, twice as many. A network of its own may be anything.

    Raises:
        ValueError: the channels do not fit, or leave open whether the network is self-conditioned.
    """
    num = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("downs."))
    dim = tensors["time_mlp.1.weight"].shape[0] // 4
    outputs = [
        tensors[f"downs.{level}.3.1.weight" if level < num - 1 else f"downs.{level}.3.weight"].shape[0]
        for level in range(num)
    ]
    full = tuple(f"downs.{level}.2.to_out.weight" in tensors for level in range(num))
    memories = [tensors[f"downs.{level}.2.mem_kv"].shape for level in range(num)]
    has_features = "time_mlp.0.weights" in tensors
    num_in, num_out = tensors["init_conv.weight"].shape[1], tensors["final_conv.weight"].shape[0]
    if self_condition is None:
        if num_in == num_out and num_in % 2 == 0 and not is_process:
            raise ValueError(
                f"{num_in} channels in and out are images of {num_in} channels, or of {num_in // 2} with "
                "self-conditioning and a learned variance: give unet={'self_condition': False} or True"
            )
        self_condition = num_in == 2 * num_out
    if self_condition and num_in % 2:
        raise ValueError(f"a self-conditioned network has an even number of channels in, got {num_in}")
    channels = num_in // 2 if self_condition else num_in
    if num_out not in (channels, 2 * channels):
        raise ValueError(
            f"{num_in} channels in and {num_out} out fit no images"
            + (" with self-conditioning" if self_condition else "")
        )
    return {
        "dim": dim,
        "init_dim": tensors["init_conv.weight"].shape[0],
        "out_dim": num_out,
        "dim_mults": tuple(width // dim for width in outputs),
        "channels": channels,
        "self_condition": self_condition,
        "learned_variance": num_out == 2 * channels,
        "learned_sinusoidal_cond": has_features,
        "learned_sinusoidal_dim": 2 * tensors["time_mlp.0.weights"].shape[0] if has_features else 16,
        "attn_heads": tuple(shape[1] for shape in memories),
        "attn_dim_head": tuple(
            shape[3] if is_full else shape[2] for shape, is_full in zip(memories, full, strict=True)
        ),
        "full_attn": full,
    }


def infer_process(tensors: Mapping[str, Tensor], *, learned_variance: bool = False) -> Diffusion:
    """The process from the buffers of lucidrains' `GaussianDiffusion`.

    The betas are float32 there; where they are those of a named schedule, it is taken in float64. The objective shows
    in the weights of the loss: the signal-to-noise ratio, at most some bound, over 1 for the image, over itself for
    the noise and over itself plus one for v.

    Raises:
        ValueError: the weights of the loss fit no objective.
    """
    betas = tensors["betas"].double().cpu().numpy()
    found_schedule = recognise_schedule(betas, ("linear", "cosine", "sigmoid"), rtol=5e-3)
    schedule = found_schedule or NoiseSchedule.from_betas(betas)
    snr = np.exp(schedule.log_snr)
    weight = tensors["loss_weight"].double().cpu().numpy()
    found: Prediction | None = None
    factors: dict[Prediction, np.ndarray[Any, np.dtype[np.float64]]] = {
        "eps": 1 / snr,
        "x0": snr**0,
        "v": 1 / (snr + 1),
    }
    for objective, factor in factors.items():
        ratio = weight / factor
        # A bound on the ratio shows only where there is much signal; where there is hardly any, float32 rounds.
        tail = (snr > 1e-2) & (snr < min(1.0, 0.99 * float(ratio.max())))
        if tail.any() and np.allclose(ratio[tail], snr[tail], rtol=1e-3):
            found = objective
    if found is None:
        raise ValueError("the weights of the loss fit none of pred_noise, pred_x0 and pred_v: give diffusion=")
    return Diffusion(schedule, found, "learned_range" if learned_variance else "fixed_small")
