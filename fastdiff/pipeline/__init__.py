"""Pipeline: a network with the process it was trained on, and what one does with the two."""

from fastdiff.pipeline.pipeline import Pipeline, default_steps

__all__ = ["Pipeline", "default_steps"]
