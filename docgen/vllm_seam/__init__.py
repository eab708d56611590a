"""What of vLLM the docs are made with. No other file of this package imports vLLM."""
