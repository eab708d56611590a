"""Speculative decoding beside forks, and faults of vLLM's that are mended here."""
