"""Images to train on, in memory and from disk, and the order in which they are visited.

Import the names from here; the modules below are grouped by where the images come from.
"""

from fastdiff.data.arrays import MappedImages
from fastdiff.data.opening import DataOptions, open_images
from fastdiff.data.pictures import PictureImages
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
    "DataOptions",
    "DataScaling",
    "ImageData",
    "ImageSource",
    "MappedImages",
    "PictureImages",
    "UnreadableImageError",
    "batch_indices",
    "digits",
    "flip_mask",
    "load",
    "load_array",
    "load_folder",
    "open_images",
    "to_uint8",
]
