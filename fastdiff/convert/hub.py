"""Models on the Hugging Face hub, through huggingface_hub: fetched, and pushed."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from fastdiff.process.checks import shown

__all__ = ["check_hub_id", "fetch", "is_hub_id", "push"]

PREFIX = re.compile("hf:/{1,2}")
"""Says that what follows is a hub id, whatever it looks like."""

_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_REVISION = re.compile(r"@[\w./-]+$")
# What is read of a model: settings and weights; of pickles only where there are no safetensors, and as data.
_SETTINGS, _WEIGHTS, _PICKLES = "*.json", "*.safetensors", ("*.bin", "*.pt")
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
        return bool(_ID.fullmatch(_REVISION.sub("", PREFIX.sub("", text, count=1))))
    if not _ID.fullmatch(text) or Path(text).exists() or Path(text).parent.is_dir():
        return False
    owner, name = text.split("/")
    if _SUFFIX.fullmatch(name) or _FOLDERS.fullmatch(owner) or _NAMES.fullmatch(name):
        return False
    folders = [entry.name for entry in Path().iterdir() if entry.is_dir()]
    return not difflib.get_close_matches(owner, folders, n=1, cutoff=0.8)


def fetch(hub_id: str) -> Path:
    """The local folder of a model on the hub, owner/name with or without "hf://", downloaded where it is not cached.

    Configurations and safetensors are fetched, no picture and no code; weights of other kinds (.bin, .pt) only where a
    model has no safetensors.

    Args:
        hub_id: As above. Behind "hf://" a revision may follow, as in "hf://owner/name@v1": a branch, a tag, a commit.

    Raises:
        RuntimeError: huggingface_hub is not installed, or the hub cannot be reached.
        ValueError: there is no such model or revision, or nothing in it that could be read.
    """
    text = PREFIX.sub("", hub_id, count=1)
    name, _, revision = text.partition("@")
    hub = _library(f"{name!r} is not on this disk, and the hub")
    with _explained(
        name, f"{name!r} is not on this disk, and the hub cannot be reached", "go online, or give a local folder"
    ):
        options = {"revision": revision} if revision else {}
        folder = Path(hub.snapshot_download(name, allow_patterns=[_SETTINGS, _WEIGHTS], **options))
        if not any(folder.rglob(_WEIGHTS)):
            folder = Path(hub.snapshot_download(name, allow_patterns=[_SETTINGS, *_PICKLES], **options))
    if not any(path for pattern in (_WEIGHTS, *_PICKLES) for path in folder.rglob(pattern)):
        raise ValueError(
            f"{name!r} on the hub holds no weights that are read here: expected .safetensors (or, of other projects, "
            ".bin or .pt); a pickle of another kind is not fetched, since it could run code"
        )
    return folder


def check_hub_id(hub_id: str) -> str:
    """The name of a model to push to, owner/name, without "hf://".

    Raises:
        ValueError: it is none.
    """
    name = PREFIX.sub("", str(hub_id), count=1)
    if not _ID.fullmatch(name):
        raise ValueError(
            f"a model on the hub is named owner/name, got {shown(str(hub_id))}: put your account's name first"
        )
    return name


def push(
    folder: Path, hub_id: str, *, private: bool = False, token: str | None = None, message: str, keep_card: bool = False
) -> str:
    """Put the files of a folder into a model on the hub, which is made where it does not exist: all of them, or none.

    Args:
        folder: What to push; files in it, no folders.
        hub_id: owner/name.
        private: Whether a model that is made is seen by its owner alone; one that exists stays as it is.
        token: Of an account that may write; when None, of HF_TOKEN or of `hf auth login`.
        message: Of the commit.
        keep_card: Leave the README.md that is there.

    Returns:
        Where the model is, a URL.

    Raises:
        RuntimeError: huggingface_hub is not installed, there is no token, the hub refuses it, or cannot be reached.
        ValueError: the name is none.
    """
    name = check_hub_id(hub_id)
    hub = _library("pushing")
    token = token or hub.get_token()
    if not token:
        raise RuntimeError(
            f"pushing to {name!r} needs a token that may write, and there is none: `hf auth login`, or set HF_TOKEN"
        )
    with _explained(
        name, f"{name!r} cannot be pushed", "see that the account may write there, and that the hub is in reach"
    ):
        api = hub.HfApi(token=token)
        place = api.create_repo(name, private=private, exist_ok=True)
        there = keep_card and api.file_exists(name, "README.md")
        additions = [
            hub.CommitOperationAdd(path.name, str(path))
            for path in sorted(folder.iterdir())
            if not (there and path.name == "README.md")
        ]
        api.create_commit(name, additions, commit_message=message)
    return str(place)


def _library(what: str) -> ModuleType:
    try:
        import huggingface_hub
    except ImportError as error:
        raise RuntimeError(f'{what} needs huggingface_hub ({error}): pip install "fastdiff-ddpm[hub]"') from error
    return huggingface_hub


@contextmanager
def _explained(name: str, what: str, remedy: str) -> Iterator[None]:
    """What the hub, or the network, says, in one sentence."""
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except GatedRepoError as error:
        raise RuntimeError(
            f"{name!r} is given to those who asked for it: ask on its page, then `hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"{name!r} is neither on this disk nor on the hub, or it is private and your token may not see it"
        ) from error
    except RevisionNotFoundError as error:
        raise ValueError(f"{name!r} on the hub has no such revision: name a branch, a tag or a commit") from error
    except Exception as error:
        # Of several network libraries.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        status = error.response.status_code if isinstance(error, HfHubHTTPError) else None
        if status in (401, 403):
            reason, remedy = f"the hub refused the token, {status}", "give one that may write, of `hf auth login`"
        elif os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
            remedy = f"HF_HUB_OFFLINE is set; {remedy}"
        raise RuntimeError(f"{what} ({reason}): {remedy}") from error
