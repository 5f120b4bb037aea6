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
)
DATA_SETTINGS = {name: f"--set data.{name}" for name in DATA_KEYS[1:]}
"""What has no option of its own, as it is typed."""

# Folder of a run for decoded pictures, where no other is named.
_CACHE_FOLDER = "cache"


def open_section(settings: Settings, out: Any) -> tuple[ImageSource, Settings]:
    """The images, and the settings that say where they are.

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
    if options.get("cache") is True:
        if out is None:
            raise ValueError(f"{spelt('cache')} True is a folder of the run: give --out, or name a folder")
        options["cache"] = str(Path(str(out), _CACHE_FOLDER))
    elif options.get("cache") is False:
        del options["cache"]
    return open_images(source, DataOptions(**options)), plain


def parsed_size(text: str) -> int | list[int]:
    """A side, or HEIGHTxWIDTH.

    Raises:
        ValueError: it is neither.
    """
    numbers = text.split("x")
    if len(numbers) > 2 or not all(number.isdecimal() for number in numbers):
        raise ValueError(f"--size takes a side or HEIGHTxWIDTH in pixels, such as 32 or 32x48, got {shown(text)}")
    return int(numbers[0]) if len(numbers) == 1 else [int(number) for number in numbers]
