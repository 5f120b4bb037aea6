"""Serving: requests that share evaluations of a network, each with the images that it would get alone.

Import the names from here. `Engine` is the core, free of any server, which is `http`'s; `Client` asks one;
`docs/serving.md` says how to run it.
"""

from fastdiff.serving.answers import Closed, Full, SampleFuture, Stats, TookTooLong
from fastdiff.serving.client import Busy, Client, ServedEvent
from fastdiff.serving.engine import Engine
from fastdiff.serving.job import Event
from fastdiff.serving.ray_serve import deployment
from fastdiff.serving.request import Request

__all__ = [
    "Busy",
    "Client",
    "Closed",
    "Engine",
    "Event",
    "Full",
    "Request",
    "SampleFuture",
    "ServedEvent",
    "Stats",
    "TookTooLong",
    "deployment",
]
