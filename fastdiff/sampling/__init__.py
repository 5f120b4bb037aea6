"""Sampling: `sample`, what can be put around a network, and what one does with both."""
