"""What crosses to the front end, and what stands there."""
