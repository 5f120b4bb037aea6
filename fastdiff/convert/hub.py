"""Models on the Hugging Face hub, through huggingface_hub."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

__all__ = ["fetch", "is_hub_id"]

PREFIX = re.compile("hf:/{1,2}")
"""Says that what follows is a hub id, whatever it looks like."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Endings and folders that people give to their own files, and hardly anybody to a model or an account.
_SUFFIX = re.compile(r".*\.(pt|pth|ckpt|bin|pkl|safetensors|json|ya?ml|np[yz]|png|jpe?g|zip|tar|gz)", re.IGNORECASE)
_FOLDERS = re.compile(
    r"(out|outputs?|runs?|logs?|results?|experiments?|exps?|models?|weights|checkpoints?|ckpts?|data(sets?)?|images?|"
    r"samples|saved?|pretrained|tmp|temp|home|mnt|work|src|tests?|unet|scheduler)",
    re.IGNORECASE,
)
_NAMES = re.compile(r"step_\d+|checkpoint-\d+")


def is_hub_id(path: str | Path) -> bool:
    """Whether a text is a hub id: with "hf://" in front, or of the form owner/name and not like a local path.

    Nobody's typing error is to be asked of the network, where the name may be anybody's. So a text is taken for a local
    path where something of that name, or its folder, is on the disk; where it ends as files do; and where its first
    part is a usual name of a folder, or nearly that of one here.
    """
    text = str(path)
    # A `Path` keeps one of the two slashes.
    if PREFIX.match(text):
        return bool(_ID.fullmatch(PREFIX.sub("", text, count=1)))
    if not _ID.fullmatch(text) or Path(text).exists() or Path(text).parent.is_dir():
        return False
    owner, name = text.split("/")
    if _SUFFIX.fullmatch(name) or _FOLDERS.fullmatch(owner) or _NAMES.fullmatch(name):
        return False
    folders = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    return not difflib.get_close_matches(owner, folders, n=1, cutoff=0.8)


def fetch(hub_id: str) -> Path:
    """The local folder of a model on the hub, owner/name with or without "hf://", downloaded where it is not cached.

    Configurations and safetensors are fetched; files of other kinds only where a model has no safetensors.

    Raises:
        RuntimeError: huggingface_hub is not installed, or the hub cannot be reached.
        ValueError: there is no such model.
    """
    hub_id = PREFIX.sub("", hub_id, count=1)
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
