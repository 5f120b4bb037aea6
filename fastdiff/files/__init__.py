"""Files: images, data sets, figures, checkpoints, each written whole or not at all."""
