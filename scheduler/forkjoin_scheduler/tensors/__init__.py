"""What the workers do to tensors for forks and joins: torch and numpy, and no vLLM.

The seam gives it vLLM's tensors. ``forkjoin_scheduler.verify`` runs the same functions on any device.
"""
