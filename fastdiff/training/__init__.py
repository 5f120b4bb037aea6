"""Training: the loop, its configuration, the averages and the log."""
