"""What of vLLM the benchmarks use. No other file of this package imports vLLM."""
