"""The version of fastdiff."""

__version__ = "0.1.0"
