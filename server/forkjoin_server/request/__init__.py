"""The request in: its body read within limits, checked, and handed to the engine."""
