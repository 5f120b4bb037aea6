"""The command line, `fastdiff`: a file for each command, and the demos."""

from fastdiff.cli.app import app, main

__all__ = ["app", "main"]
