"""The version of fastdiff."""

__version__ = "0.2.0"
