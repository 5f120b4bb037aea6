"""`fastdiff convert`: a model of one project as another project reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fastdiff.cli.options import blaming, key_values

__all__ = ["convert"]


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="A fastdiff or diffusers folder, a .pt of improved-diffusion, guided-diffusion, ddim, score_sde, a "
            ".pkl of EDM, or a hub id."
        ),
    ],
    target: Annotated[
        Path, typer.Argument(help="The folder (diffusers, fastdiff) or the .pt file (openai, score_sde) to write.")
    ],
    to: Annotated[str, typer.Option("--to", help="diffusers, openai, score_sde or fastdiff.")] = "fastdiff",
    preset: Annotated[
        str | None, typer.Option(help="Where the file does not say it all: a published network, such as ho-cifar10.")
    ] = None,
    flags: Annotated[
        str | None, typer.Option(help='Or the flags of OpenAI\'s scripts: "--image_size 64 --learn_sigma True".')
    ] = None,
    unet: Annotated[
        list[str] | None, typer.Option("--unet", help="Or name=value: image_size=32, num_heads=4, qkv_layout=legacy.")
    ] = None,
    diffusion: Annotated[
        list[str] | None,
        typer.Option("--diffusion", help="And name=value: schedule=linear, timesteps=1000, variance=fixed_large."),
    ] = None,
    weights: Annotated[str | None, typer.Option(help="ema or raw, where the source has both.")] = None,
) -> None:
    """Convert a model. Names and configurations change; the weights stay the same to the last bit."""
    from fastdiff.convert.save import save_as
    from fastdiff.nets.recipes import build_diffusion
    from fastdiff.pipeline import Pipeline

    kind: Any = weights
    form: Any = to
    with blaming("--diffusion", diffusion):
        process = build_diffusion(key_values(diffusion, "--diffusion"))[0] if diffusion else None
    with blaming("--unet", unet):
        fields = key_values(unet, "--unet") if unet else None
        pipe = Pipeline.from_pretrained(
            source, weights=kind, preset=preset, flags=flags, unet=fields, diffusion=process
        )
    for what, who in (pipe.metadata.get("said") or {}).items():
        typer.echo(f"not in the file: {what}, from {who}")
    written = save_as(pipe, target, form)
    typer.echo(str(written))
    typer.echo(_how_to_use(written, form, pipe))


def _how_to_use(written: Path, form: str, pipe: Any) -> str:
    """Lines of Python that sample what was written, and what the other side cannot do with it."""
    classes = pipe.unet.config.num_classes
    channels, height, width = pipe.image_shape
    steps = min(50, pipe.diffusion.num_timesteps)
    if form == "openai":
        return f"its flags are in {written}.json; sample it with image_sample.py --model_path {written}"
    if form == "score_sde":
        return f"sample it with main.py of score_sde: its restore_checkpoint reads {written}"
    if form == "fastdiff":
        labels = "" if classes is None else ", labels=[0] * 4"
        return (
            "to sample it:\n"
            "    import fastdiff as fd\n"
            f"    images = fd.Pipeline.from_pretrained({str(written)!r}).sample(4{labels})"
        )
    is_edm = pipe.diffusion.prediction == "F"
    if classes is None and not is_edm:
        return (
            "to sample it:\n"
            "    import diffusers\n"
            f"    pipe = diffusers.DDPMPipeline.from_pretrained({str(written)!r})\n"
            f"    images = pipe(4, num_inference_steps={steps}).images"
        )
    # DDPMPipeline and DDIMPipeline call the network with no labels, which it then refuses, and scale nothing.
    why = "scales nothing, as EDM's scheduler wants it"
    if classes is not None:
        why = f"gives a network no labels, and this one has {classes} classes"
    labels = "" if classes is None else ", class_labels=torch.zeros(4).long()"
    noise, given = f"torch.randn(4, {channels}, {height}, {width})", "x"
    if is_edm:
        noise, given = f"{noise} * pipe.scheduler.init_noise_sigma", "pipe.scheduler.scale_model_input(x, t)"
    return (
        f"diffusers' DDPMPipeline {why}; to sample it:\n"
        "    import diffusers, torch\n"
        f"    pipe = diffusers.DDPMPipeline.from_pretrained({str(written)!r})\n"
        f"    pipe.scheduler.set_timesteps({steps})\n"
        f"    x = {noise}\n"
        "    with torch.no_grad():\n"
        "        for t in pipe.scheduler.timesteps:\n"
        f"            output = pipe.unet({given}, t{labels}).sample\n"
        "            x = pipe.scheduler.step(output, t, x).prev_sample"
    )
