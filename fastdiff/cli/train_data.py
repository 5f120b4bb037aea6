"""The section `data` of a training's settings: where its images come from, and how they are read."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastdiff.nets.recipes import Settings
from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown

if TYPE_CHECKING:
    from fastdiff.data.source import ImageSource

__all__ = ["DATA_KEYS", "DATA_SETTINGS", "open_section", "parsed_size"]

DATA_KEYS = (
    "source",
    "split",
    "size",
    "channels",
    "layout",
    "labels",
    "levels",
    "columns",
    "crop",
    "resize",
    "storage",
    "cache",
    "workers",
    "skip_corrupt",
    "held_out",
)
DATA_SETTINGS = {name: f"--set data.{name}" for name in DATA_KEYS[1:]}
"""What has no option of its own, as it is typed."""

# Folder of a run for decoded pictures, where no other is named.
_CACHE_FOLDER = "cache"


def open_section(settings: Settings, out: Any) -> tuple[ImageSource, ImageSource | None, Settings]:
    """The images to train on, those held out, and the settings that say where they are.

    Args:
        settings: The section "data".
        out: The run's folder; None where it was not given.

    Raises:
        ValueError: no source, or what `open_images` raises.
    """
    from fastdiff.data.opening import WHAT_IT_IS, DataOptions, open_images

    if settings.get("source") is None:
        raise ValueError(f"what to train on? give --data: {WHAT_IT_IS}")
    options = {key: value for key, value in settings.items() if key != "source" and value is not None}
    source = str(settings["source"])
    plain = {"source": source, **options}
    held_out = options.pop("held_out", None)
    if options.get("cache") is True:
        if out is None:
            raise ValueError(f"{spelt('cache')} True is a folder of the run: give --out, or name a folder")
        options["cache"] = str(Path(str(out), _CACHE_FOLDER))
    elif options.get("cache") is False:
        del options["cache"]
    images = open_images(source, DataOptions(**options))
    return *_held_out(held_out, images, plain), plain


def _held_out(held_out: Any, images: ImageSource, settings: Settings) -> tuple[ImageSource, ImageSource | None]:
    """The images to train on, and those held out: a share of these, another split of them, or another source."""
    from fastdiff.data.opening import DataOptions, open_images
    from fastdiff.data.part import hold_out

    if held_out is None and images.source == "digits/train":
        held_out = "test"
    if held_out is None or held_out == "none":
        return images, None
    share = _number(held_out)
    if share is not None:
        return hold_out(images, share)
    # Nothing is cut at random, or left out, where curves are to be compared.
    names = ("size", "channels", "layout", "levels", "resize", "columns")
    kept = {name: settings[name] for name in names if settings.get(name) is not None}
    where = str(held_out)
    if where.isidentifier() and not Path(where).exists():
        kept |= {"split": where}
        where = str(settings["source"])
    try:
        return images, open_images(where, DataOptions(**kept))
    except ValueError as error:
        raise ValueError(f"{spelt('held_out')} {error}") from error


def _number(value: object) -> float | None:
    """The number that a value, or a text of one, is; None for others."""
    try:
        return float(str(value))
    except ValueError:
        return None


def parsed_size(text: str) -> int | list[int]:
    """A side, or HEIGHTxWIDTH.

    Raises:
        ValueError: it is neither.
    """
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--size takes a side or HEIGHTxWIDTH in pixels, such as 32 or 32x48, got {shown(text)}")
    return int(numbers[0]) if len(numbers) == 1 else [int(number) for number in numbers]
