"""Images to train on, wherever they lie."""
