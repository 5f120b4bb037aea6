"""Many samples, in parts that several processes share out, and that a stopped job goes on from."""
