"""What `fastdiff train` says of the classes of its data."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fastdiff.data.source import ImageSource

__all__ = ["about_classes", "class_names"]

# Names of classes in one line.
_MOST_NAMES = 10
# Sub-folders that are parts of a set rather than classes.
_SPLITS = ("train", "training", "test", "testing", "val", "valid", "validation", "dev")


def class_names(data: ImageSource) -> tuple[str, ...]:
    """Names of the classes of data with labels; their numbers, where they have no names."""
    assert data.labels is not None
    return data.label_names or tuple(str(label) for label in range(int(data.labels.max()) + 1))


def about_classes(data: ImageSource, num_classes: int | None) -> list[str]:
    """Sentences on which classes the data have, and whether a network of so many classes is trained on them."""
    if data.labels is None:
        return []
    names = class_names(data)
    listed = ", ".join(names[:_MOST_NAMES]) + (", ..." if len(names) > _MOST_NAMES else "")
    count = "1 class" if len(names) == 1 else f"{len(names)} classes"
    if num_classes is None:
        said = (
            f"{count} found ({listed}), not used: with --set unet.num_classes={len(names)} the network learns them, "
            "with --label-dropout 0.1 so that it can be guided"
        )
    else:
        more = "" if num_classes == len(names) else f"; the network has room for {num_classes}"
        said = f"{count}: {listed}{more}"
    lines = [said]
    splits = [name for name in data.label_names or () if name.lower() in _SPLITS]
    if splits and len(splits) == len(names):
        lines.append(
            f"the folders {', '.join(splits)} look like parts of the data and not like classes: images of all of them "
            f"are trained on; --data {data.source}/{splits[-1]} would take one"
        )
    return lines
