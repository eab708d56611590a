"""What of vLLM the front end uses and changes. No other file of this package imports vLLM."""
