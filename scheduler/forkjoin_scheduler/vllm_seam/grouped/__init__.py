"""KV that rows of a step share is read once: which rows, in the scheduler; two passes, in the workers."""
