"""A server's life, and what operators see of it: readiness, the drain, processes, logs, metrics."""
