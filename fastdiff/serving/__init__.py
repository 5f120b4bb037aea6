"""Serving: requests that share evaluations of a network, each with the images that it would get alone.

Import the names from here. `Engine` is the core, free of any server; `docs/serving.md` says how to run one.
"""

from fastdiff.serving.engine import Closed, Engine, Full, SampleFuture, Stats, TookTooLong
from fastdiff.serving.job import Event
from fastdiff.serving.request import Request

__all__ = ["Closed", "Engine", "Event", "Full", "Request", "SampleFuture", "Stats", "TookTooLong"]
