"""Models on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["fetch", "is_hub_id"]

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def is_hub_id(path: str | Path) -> bool:
    """Whether a text has the form of a hub id, owner/name, and nothing of that name is on the disk."""
    text = str(path)
    return bool(_ID.fullmatch(text)) and not Path(text).exists() and not Path(text).parent.is_dir()


def fetch(hub_id: str) -> Path:
    """The local folder of a model on the hub, downloaded where it is not in the cache.

    Configurations and safetensors are fetched; files of other kinds only where a model has no safetensors.

    Raises:
        RuntimeError: huggingface_hub is not installed, or the hub cannot be reached.
        ValueError: there is no such model.
    """
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import RepositoryNotFoundError
    except ImportError as error:
        raise RuntimeError(
            f"{hub_id!r} is not on this disk, and the hub needs huggingface_hub ({error}): "
            'pip install "fastdiff-ddpm[hub]"'
        ) from error
    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.safetensors"]))
        if not any(folder.rglob("*.safetensors")):
            folder = Path(snapshot_download(hub_id, allow_patterns=["*.json", "*.bin", "*.pt"]))
    except RepositoryNotFoundError as error:
        raise ValueError(f"{hub_id!r} is neither on this disk nor on the hub") from error
    except Exception as error:
        # Of several network libraries; whatever it was, the way out is the same.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RuntimeError(
            f"{hub_id!r} is not on this disk, and the hub cannot be reached ({reason}): go online, or give a local "
            "folder"
        ) from error
    return folder
