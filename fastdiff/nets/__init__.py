"""Networks: the U-Net and its presets, and other people's networks with the fused ops inside."""
