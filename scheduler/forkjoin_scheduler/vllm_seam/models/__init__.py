"""Classes of models that vLLM has none for."""
