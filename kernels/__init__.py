"""The GPU kernels, in Triton. They register no op: `fastdiff.ops` imports a launcher when it first needs it."""
