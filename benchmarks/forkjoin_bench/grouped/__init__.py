"""What grouped attention reads, and where there is a GPU, what it costs."""
