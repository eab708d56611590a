"""The only folder of this package that imports vLLM (pinned to 0.32)."""
