"""What of the files of a data set goes into a checkpoint's description, without reading terabytes at each start."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["BLOCK", "NUM_BLOCKS", "file_digest", "listing_digest"]

NUM_BLOCKS, BLOCK = 64, 1 << 16
"""Blocks of a file that are read, and bytes of each: up to 4 MiB of a file are read whole."""


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file's size and of 64 blocks of 64 KiB spread over it, the first and the last included.

    A file of up to 4 MiB is covered whole. A change of a larger one that leaves its size as it is shows only where it
    meets a block.

    Raises:
        ValueError: the file cannot be read.
    """
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            digest.update(str(size).encode())
            whole = size <= NUM_BLOCKS * BLOCK
            starts = range(0, size, BLOCK) if whole else np.linspace(0, size - BLOCK, NUM_BLOCKS).astype(np.int64)
            for start in starts:
                file.seek(int(start))
                digest.update(file.read(BLOCK))
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror or error}") from error
    return digest.hexdigest()


def listing_digest(entries: Iterable[tuple[Any, ...]], **options: Any) -> str:
    """SHA-256 of plain values: an entry for each image, such as its name and size, and options that change pixels."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True).encode())
    for entry in entries:
        digest.update(json.dumps(entry).encode())
    return digest.hexdigest()
