"""The only folder of this package that imports vLLM (0.32 or 0.33)."""
