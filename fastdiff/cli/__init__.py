"""The command line, `fastdiff`: a file for each command, and the demos."""

import sys

from fastdiff.process.installation import WrongPackage

try:
    from fastdiff.cli.app import app, main
except WrongPackage as error:
    sys.exit(f"error: {error}")

__all__ = ["app", "main"]
