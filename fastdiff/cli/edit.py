"""The command `fastdiff edit`: encode, decode, vary, interpolate, inpaint, upscale."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fastdiff.cli.options import Command, DeviceOption, ModelArgument, PrecisionOption, ThreadsOption, load_pipeline
from fastdiff.cli.output import OverwriteOption, check_free, check_holds, check_writable

if TYPE_CHECKING:
    from torch import Tensor

    from fastdiff.pipeline import Pipeline

__all__ = ["edit_app"]

edit_app = typer.Typer(
    name="edit",
    help="Go back and forth between images and noise: vary, mix, repair and enlarge images.",
    no_args_is_help=True,
)

ImagesArgument = Annotated[
    str, typer.Argument(help="An image file, a folder of images, a .npz or .npy file, or digits; scaled to the model.")
]
NumOption = Annotated[int | None, typer.Option("--num", "-n", min=1, help="The first so many; all, at most 16.")]
StepsOption = Annotated[int, typer.Option(min=1, help="Steps from the image to pure noise.")]
OrderOption = Annotated[int, typer.Option(min=1, max=4, help="Of the solver; 1 is DDIM.")]
SeedOption = Annotated[int, typer.Option(min=0, help="Of the noise.")]
LabelOption = Annotated[
    str | None, typer.Option(help="Class of the images, number or name, for networks with classes.")
]
GuidanceOption = Annotated[
    float | None, typer.Option(help="Scale of classifier-free guidance, for a network with a null class: 1 is none.")
]
NullOption = Annotated[
    str | None, typer.Option("--null-label", help="The null class, number or name, where the model does not say.")
]
OutOption = Annotated[Path, typer.Option("--out", "-o", help="The results: .png, .npz or .npy (float32).")]
PictureOption = Annotated[
    Path | None,
    typer.Option(help="The side-by-side picture (.png); beside the results, if left out and they are no .npy."),
]

# Where nobody said how many.
_MOST = 16


@edit_app.command(cls=Command)
def encode(
    model: ModelArgument,
    images: ImagesArgument,
    out: OutOption = Path("latent.npz"),
    num: NumOption = None,
    steps: StepsOption = 50,
    order: OrderOption = 2,
    exact: Annotated[bool, typer.Option("--exact", help="Invert DDIM's steps by fixed-point iteration.")] = False,
    iterations: Annotated[int, typer.Option(min=1, help="Of the fixed-point iteration, per step.")] = 5,
    label: LabelOption = None,
    picture: PictureOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Map images to noise, deterministically, and tell how well they come back."""
    pipe, x, labels = _prepared(model, images, out, num, label, device, precision, picture, overwrite)
    options: dict[str, Any] = {"steps": steps, "order": order, "exact": exact, "labels": labels}
    latent = pipe.encode(x, iterations=iterations, **options)
    back = pipe.decode(latent, **options)
    error = (back.cpu() - x).square().flatten(1).mean(dim=1).sqrt()
    typer.echo(f"round-trip error {float(error.mean()):.2e}, at most {float(error.max()):.2e} (RMS, of -1 to 1)")
    _write(out, latent, kind="latent")
    _side_by_side(out, picture, [("image", x), ("noise / 3", latent / 3), ("back", back)])


@edit_app.command(cls=Command)
def decode(
    model: ModelArgument,
    latents: Annotated[Path, typer.Argument(help="What encode wrote, .npz.")],
    out: OutOption = Path("decoded.png"),
    steps: StepsOption = 50,
    order: OrderOption = 2,
    exact: Annotated[bool, typer.Option("--exact", help="As encode was told.")] = False,
    label: LabelOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Map noise that encode wrote back to images."""
    _check_out(out, None, overwrite)
    import torch

    from fastdiff.files.images import read_arrays

    stored = read_arrays(latents, ["arr_0"])["arr_0"]
    if stored.dtype.kind != "f":
        raise ValueError(f"{latents}: expected the floats that encode wrote, got {stored.dtype}")
    latent = torch.from_numpy(stored.copy())
    pipe = load_pipeline(model, device, precision=precision)
    _check_place(pipe, out)
    found = pipe.decode(latent, steps=steps, order=order, exact=exact, labels=_labels(pipe, label, len(latent)))
    _write(out, found)


@edit_app.command(cls=Command)
def vary(
    model: ModelArgument,
    images: ImagesArgument,
    strength: Annotated[
        str, typer.Option(help="0 keeps the image, 1 is a fresh sample; several: 0.2,0.5.")
    ] = "0.2,0.4,0.6,0.8",
    out: OutOption = Path("varied.png"),
    num: NumOption = None,
    sampler: Annotated[str, typer.Option(help="What brings the images back.")] = "ddim",
    steps: StepsOption = 50,
    seed: SeedOption = 0,
    label: LabelOption = None,
    guidance: GuidanceOption = None,
    null_label: NullOption = None,
    picture: PictureOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Noise images up to a level and bring them back: variations of them."""
    shares = _numbers("--strength", strength)
    pipe, x, labels = _prepared(model, images, out, num, label, device, precision, picture, overwrite)
    steps = min(steps, pipe.diffusion.num_timesteps)
    found = pipe.vary(
        x,
        strength=shares,
        sampler=sampler,
        steps=steps,
        seed=seed,
        labels=labels,
        guidance=guidance,
        null_label=null_label,
    )
    _write(out, found.flatten(0, 1))
    columns = [(f"strength {share:g}", varied) for share, varied in zip(shares, found, strict=True)]
    _side_by_side(out, picture, [("image", x), *columns])


@edit_app.command(cls=Command)
def interpolate(
    model: ModelArgument,
    a: ImagesArgument,
    b: Annotated[str, typer.Argument(help="As many images, of the other end.")],
    weight: Annotated[str, typer.Option(help="Of the second image; several: 0.25,0.5,0.75.")] = "0,0.25,0.5,0.75,1",
    level: Annotated[float, typer.Option(help="Noise level to mix at, a share of the timesteps in [0, 1].")] = 1.0,
    mode: Annotated[str, typer.Option(help="slerp or linear.")] = "slerp",
    out: OutOption = Path("interpolated.png"),
    num: NumOption = None,
    steps: StepsOption = 50,
    order: OrderOption = 2,
    label: LabelOption = None,
    picture: PictureOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Mix images in the space of their noise."""
    weights = _numbers("--weight", weight)
    pipe, first, labels = _prepared(model, a, out, num, label, device, precision, picture, overwrite)
    second = _read(pipe, b, num)
    chosen: Any = mode
    found = pipe.interpolate(
        first, second, weight=weights, level=level, mode=chosen, steps=steps, order=order, labels=labels
    )
    _write(out, found.flatten(0, 1))
    columns = [(f"weight {share:g}", mixed) for share, mixed in zip(weights, found, strict=True)]
    _side_by_side(out, picture, [("first", first), *columns, ("second", second)])


@edit_app.command(cls=Command)
def inpaint(
    model: ModelArgument,
    images: ImagesArgument,
    mask: Annotated[Path | None, typer.Option(help="An image: white is known and kept, black is filled.")] = None,
    hole: Annotated[str | None, typer.Option(help="What to fill instead: top,left,height,width in pixels.")] = None,
    out: OutOption = Path("inpainted.png"),
    num: NumOption = None,
    steps: StepsOption = 50,
    jump_length: Annotated[int, typer.Option(min=1, help="RePaint: timesteps in a jump back.")] = 10,
    jump_repeats: Annotated[int, typer.Option(min=1, help="RePaint: how often each place is sampled.")] = 5,
    seed: SeedOption = 0,
    label: LabelOption = None,
    guidance: GuidanceOption = None,
    null_label: NullOption = None,
    picture: PictureOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Fill a part of images; the rest stays as it is."""
    if (mask is None) == (hole is None):
        raise ValueError("give either --mask or --hole")
    pipe, x, labels = _prepared(model, images, out, num, label, device, precision, picture, overwrite)
    known = _mask(mask, hole, x)
    found = pipe.inpaint(
        x,
        known,
        steps=min(steps, pipe.diffusion.num_timesteps),
        jump_length=jump_length,
        jump_repeats=jump_repeats,
        seed=seed,
        labels=labels,
        guidance=guidance,
        null_label=null_label,
    )
    _write(out, found)
    _side_by_side(out, picture, [("image", x), ("known", x.where(known.bool(), x.new_zeros(()))), ("filled", found)])


@edit_app.command(cls=Command)
def upscale(
    model: ModelArgument,
    images: Annotated[
        str,
        typer.Argument(
            help="Small images, or large ones to be made small first: a file, a folder, a .npz or .npy file, or digits."
        ),
    ],
    out: OutOption = Path("upscaled.png"),
    num: NumOption = None,
    sampler: Annotated[str, typer.Option(help="`fastdiff info samplers` lists them.")] = "ddim",
    steps: StepsOption = 50,
    seed: SeedOption = 0,
    label: LabelOption = None,
    guidance: GuidanceOption = None,
    null_label: NullOption = None,
    picture: PictureOption = None,
    overwrite: OverwriteOption = False,
    precision: PrecisionOption = None,
    device: DeviceOption = "auto",
    threads: ThreadsOption = None,
) -> None:
    """Make large images of small ones, with a network that was trained to (train --condition low_res:2)."""
    import torch.nn.functional as F

    pipe, x, labels = _prepared(model, images, out, num, label, device, precision, picture, overwrite, is_small=True)
    known, (_, height, width) = pipe.condition, pipe.image_shape
    assert known is not None
    is_large = tuple(x.shape[2:]) == (height, width)
    small = known.reduced(x) if is_large else x
    found = pipe.sample(
        len(x),
        sampler=sampler,
        steps=min(steps, pipe.diffusion.num_timesteps),
        seed=seed,
        labels=labels,
        condition=small,
        guidance=guidance,
        null_label=null_label,
    )
    _write(out, found)
    columns = [("small", F.interpolate(small, (height, width), mode="nearest")), ("sampled", found)]
    _side_by_side(out, picture, columns + ([("true", x)] if is_large else []))


def _prepared(
    model: Path,
    images: str,
    out: Path,
    num: int | None,
    label: str | None,
    device: str,
    precision: str | None,
    picture: Path | None,
    overwrite: bool,
    *,
    is_small: bool = False,
) -> tuple[Pipeline, Tensor, Tensor | None]:
    beside = _picture(out, picture)
    _check_out(out, beside, overwrite)
    pipe = load_pipeline(model, device, precision=precision)
    _check_place(pipe, out, *([] if beside is None else [beside]))
    factor = pipe.condition.factor if pipe.condition is not None else None
    if is_small and factor is None:
        raise ValueError(f"{model} was not trained to make large images of small ones: see train --condition low_res:2")
    x = _read(pipe, images, num, factor if is_small else None)
    return pipe, x, _labels(pipe, label, len(x))


def _check_out(out: Path, picture: Path | None, overwrite: bool) -> None:
    check_free(out, (".png", ".npz", ".npy"), overwrite=overwrite)
    if picture is not None:
        check_free(picture, (".png",), overwrite=overwrite, option="--picture")


def _check_place(pipe: Pipeline, *paths: Path) -> None:
    for path in paths:
        check_holds(path.suffix.lower(), pipe.image_shape[0], pipe.scaling.levels)
        check_writable(path.parent, path.name)


def _picture(out: Path, picture: Path | None) -> Path | None:
    """Where the side-by-side picture goes; none is made of arrays that no picture may hold, unless it was asked for."""
    if picture is None and out.suffix.lower() == ".npy":
        return None
    return picture or out.with_name(f"{out.stem}_side_by_side.png")


def _read(pipe: Pipeline, source: str, num: int | None, factor: int | None = None) -> Tensor:
    """Images of the model's shape in [-1, 1]; with a factor, images that are so much smaller stay so."""
    import torch

    from fastdiff.files import data
    from fastdiff.files.images import SUFFIXES, list_images, read_image

    channels, height, width = pipe.image_shape
    small = (channels, height // factor, width // factor) if factor else None
    grey: Any = channels if channels in (1, 3) else None
    path = Path(source)
    is_file = path.is_file() and path.suffix.lower() in SUFFIXES
    size: int | None = height
    if small is not None and (is_file or path.is_dir()):
        first = path if is_file else path / list_images(path)[0]
        size = None if read_image(first, channels=grey).shape == small else height
    if is_file:
        picture = torch.from_numpy(read_image(path, size=size, channels=grey))[None]
        x = data.DataScaling().to_model(picture)
    elif path.is_dir():
        folder = data.load(source, size=size, channels=grey)
        x = folder.to_model(folder.images)
    else:
        stored = data.load(source, split="test" if source == "digits" else None)
        x = stored.to_model(stored.images)
    if tuple(x.shape[1:]) not in ((channels, height, width), small):
        or_small = "" if small is None else f", small ones {'x'.join(map(str, small))}"
        raise ValueError(
            f"the model's images are {channels}x{height}x{width} (channels x height x width){or_small}, those of "
            f"{source} {'x'.join(map(str, x.shape[1:]))}"
        )
    return x[: _MOST if num is None else num]


def _labels(pipe: Pipeline, label: str | None, num: int) -> Tensor | None:
    import torch

    if label is None and pipe.classes.num is not None:
        raise ValueError(f"the network has {pipe.classes.num} classes: give --label")
    return None if label is None else torch.full((num,), pipe.classes.number(label, "--label"))


def _mask(path: Path | None, hole: str | None, x: Tensor) -> Tensor:
    """[H, W] boolean, true where pixels are known."""
    import torch

    height, width = x.shape[-2:]
    if hole is not None:
        numbers = _numbers("--hole", hole)
        if len(numbers) != 4 or any(number < 0 or not number.is_integer() for number in numbers):
            raise ValueError(f"--hole takes top,left,height,width in whole pixels, got {hole!r}")
        top, left, tall, wide = (int(number) for number in numbers)
        if tall < 1 or wide < 1 or top + tall > height or left + wide > width:
            raise ValueError(f"--hole must lie in the image of {height}x{width}, got {hole!r}")
        known = torch.ones(height, width, dtype=torch.bool)
        known[top : top + tall, left : left + wide] = False
        return known
    from fastdiff.files.images import read_image

    assert path is not None
    try:
        found = torch.from_numpy(read_image(path, channels=1))[0]
    except ValueError as error:
        raise ValueError(f"--mask {error}") from error
    if tuple(found.shape) != (height, width):
        raise ValueError(f"the mask must have the images' {height}x{width} pixels, {path} has {list(found.shape)}")
    return found >= 128


def _numbers(name: str, text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"{name} takes numbers such as 0.2,0.5, got {text!r}") from None


def _write(out: Path, images: Tensor, kind: str = "image") -> None:
    import numpy as np

    from fastdiff.files.atomic import atomic_file, target_path
    from fastdiff.files.images import write_grid, write_npz

    images = images.detach().cpu()
    if out.suffix.lower() == ".png":
        shown = images / 3 if kind == "latent" else images
        write_grid(out, shown, scale=1 if len(images) == 1 else None)
    elif out.suffix.lower() == ".npy":
        with atomic_file(out) as file:
            np.save(file, images.float().numpy())
    elif kind == "latent":
        with atomic_file(target_path(out, ".npz")) as file:
            np.savez(file, images.numpy())
    else:
        write_npz(out, images)
    typer.echo(str(out))


def _side_by_side(out: Path, picture: Path | None, columns: list[tuple[str, Tensor]]) -> None:
    """One row per image, one column per step of what was done to it."""
    import torch

    from fastdiff.files.images import write_grid

    path = _picture(out, picture)
    if path is None:
        return
    tiles = torch.stack([part.detach().cpu().float() for _, part in columns], dim=1).flatten(0, 1)
    labels = [name for name, _ in columns] * len(columns[0][1])
    typer.echo(str(write_grid(path, tiles, columns=len(columns), labels=labels)))
