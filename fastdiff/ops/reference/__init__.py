"""The oracle: every op in plain PyTorch, a file for each, to be read and not timed."""
