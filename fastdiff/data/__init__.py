"""Images to train on, in memory and from disk, and the order in which they are visited.

Import the names from here; the modules below are grouped by where the images come from.
"""

from fastdiff.data.source import ImageSource, UnreadableImageError
from fastdiff.files.data import (
    ImageData,
    batch_indices,
    digits,
    flip_mask,
    load,
    load_array,
    load_folder,
)
from fastdiff.files.images import to_uint8
from fastdiff.files.scaling import DataScaling

__all__ = [
    "DataScaling",
    "ImageData",
    "ImageSource",
    "UnreadableImageError",
    "batch_indices",
    "digits",
    "flip_mask",
    "load",
    "load_array",
    "load_folder",
    "to_uint8",
]
