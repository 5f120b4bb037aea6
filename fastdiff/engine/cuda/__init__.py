"""The executor for CUDA: the plan of a network as a list of launches, captured, and looped over a table's rows."""
