"""What bounds a server: bodies, times, and what it keeps."""

from __future__ import annotations

from dataclasses import dataclass

from fastdiff.process.arguments import spelt
from fastdiff.process.checks import shown, whole_number

__all__ = ["Settings"]


@dataclass(frozen=True)
class Settings:
    """What bounds a server, beside the engine's own limits.

    Attributes:
        max_body: Bytes of a request's body.
        api_key: What clients must show as a bearer token; None for no key.
        keep_seconds: How long the result of an asynchronous request is kept.
        keep_results: How many are kept at most.
        keep_bytes: Of images, in all of them.
        body_seconds: Within which a body must have come.
        stall_seconds: For which a reader of events may take nothing.
        comment_seconds: Between the comments that keep a quiet stream of events open.
        name: What the model is called; never a path.

    Raises:
        ValueError: a number out of range, or an empty key.
    """

    max_body: int = 16 * 2**20
    api_key: str | None = None
    keep_seconds: float = 300.0
    keep_results: int = 1000
    keep_bytes: int = 256 * 2**20
    body_seconds: float = 30.0
    stall_seconds: float = 60.0
    comment_seconds: float = 15.0
    name: str = "model"

    def __post_init__(self) -> None:
        for name in ("max_body", "keep_results", "keep_bytes"):
            whole_number(spelt(name), getattr(self, name), low=1)
        for name in ("keep_seconds", "body_seconds", "stall_seconds", "comment_seconds"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                raise ValueError(f"{spelt(name)} must be a number of seconds above 0, got {shown(value)}")
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.isprintable() and self.api_key):
            raise ValueError(f"{spelt('api_key')} must be printable ASCII and not empty")
